"""Options of a command that set a key of the recipe: type, choices, range and help are those that the recipe declares."""

from __future__ import annotations

from typing import Any

import click

_TYPES = {"float": click.FLOAT, "int": click.INT, "str": click.STRING}


class RecipeCommand(click.Command):
    """A command with an option for each of ``settings``, and for each option of a loss; made when they are asked for.

    The command's function gets them as keyword arguments such as ``optim__lr`` for ``optim.lr``, None where not given.
    """

    settings: tuple[str, ...] = ()
    """Dotted keys in the order of the help; ``loss.*`` stands for the options of the losses."""
    types: dict[str, click.ParamType] = {}  # noqa: RUF012
    """Types that complete names, by key."""
    made = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's arguments, the settings, its other options."""
        if not self.made:
            self.made = True
            arguments = [each for each in self.params if isinstance(each, click.Argument)]
            others = [each for each in self.params if not isinstance(each, click.Argument)]
            self.params = [*arguments, *self._options(), *others]
        return super().get_params(ctx)

    def _options(self) -> list[click.Option]:
        from zoo import recipe

        declared = recipe.options()
        keys: list[str] = []
        for key in self.settings:
            own = key == "loss.*"
            keys += [each for each in declared if each.startswith("loss.") and not recipe.is_field(each)] if own else [key]
        return [_option(key, declared[key], self.types.get(key)) for key in keys if "list" not in declared[key].type]


def _option(key: str, declared: Any, kind: click.ParamType | None) -> click.Option:
    """``--lr`` for ``optim.lr``, ``--data`` for ``data.name``; ranges are left to the recipe, whose message is clearer."""
    table, _, leaf = key.rpartition(".")
    flag = f"--{table}" if leaf == "name" else f"--{key.replace('.', '-')}" if leaf == "dir" else f"--{leaf.replace('_', '-')}"
    bounds = f" ({declared.range})" if declared.range and not declared.choices else ""
    given: dict[str, Any] = {"help": f"{declared.help[0].upper()}{declared.help[1:]}{bounds}."}
    if declared.type == "bool":
        given |= {"is_flag": True, "default": None}
    elif declared.choices:
        given["type"] = click.Choice(declared.choices)
    else:
        given["type"] = kind or _TYPES[declared.type]
    return click.Option([flag, key.replace(".", "__")], **given)
