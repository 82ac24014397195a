"""Options of a command that set a key of the recipe, with the type, choices, default, range and help that the recipe declares."""

from __future__ import annotations

import re
from typing import Any

import click

_LIMIT = re.compile(r" and <=? \d{5,}$")
"""An upper bound that only excludes typing errors."""
_TYPES = {"float": click.FLOAT, "int": click.INT, "str": click.STRING}


class RecipeCommand(click.Command):
    """A command with an option for each of ``settings``, and for each option of a loss, created on first use.

    The command's function receives them as keyword arguments such as ``optim__lr`` for ``optim.lr``, None where not given.
    """

    settings: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    """Dotted keys by section of the help, in its order; ``loss.*`` stands for the options of the losses.
    Names of the command's own options place these in a section."""
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
        placed = {param.name for param in self.params}
        for key in (key for section in self.settings.values() for key in section if key not in placed):
            own = key == "loss.*"
            keys += [each for each in declared if each.startswith("loss.") and not recipe.is_field(each)] if own else [key]
        return [_option(key, declared[key], self.types.get(key)) for key in keys if "list" not in declared[key].type]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options in sections: those of ``settings``, then the command's own."""
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        left = {option.name: record for option in options if (record := option.get_help_record(ctx))}
        for title, keys in self.settings.items():
            names = [name for key in keys for name in left if name and _stands_for(key, name)]
            with formatter.section(title):
                formatter.write_dl([left.pop(name) for name in dict.fromkeys(names)])
        with formatter.section("Output"):
            formatter.write_dl(list(left.values()))


def _stands_for(key: str, name: str) -> bool:
    """Whether the option ``name`` sets ``key``, or an option of a loss if ``key`` is ``loss.*``."""
    own = name.startswith("loss__") and name not in ("loss__name", "loss__class_weights", "loss__beta", "loss__drw_epoch")
    return own if key == "loss.*" else name == key.replace(".", "__")


def _option(key: str, declared: Any, kind: click.ParamType | None) -> click.Option:
    """``--lr`` for ``optim.lr``, ``--data`` for ``data.name``; the recipe checks the range, with a clearer message."""
    table, _, leaf = key.rpartition(".")
    flag = f"--{table}" if leaf == "name" else f"--{key.replace('.', '-')}" if leaf == "dir" else f"--{leaf.replace('_', '-')}"
    facts = [f"default: {declared.default}"] if declared.default != "" and declared.type != "bool" else []
    facts += [_LIMIT.sub("", declared.range)] if declared.range and not declared.choices else []
    first = declared.help[0] if declared.help.startswith("auto") else declared.help[0].upper()
    given: dict[str, Any] = {"help": f"{first}{declared.help[1:]}" + (f" ({'; '.join(facts)})." if facts else ".")}
    if declared.type == "bool":
        given |= {"is_flag": True, "default": None}
    elif declared.choices:
        given["type"] = click.Choice(declared.choices)
    else:
        given["type"] = kind or _TYPES[declared.type]
    return click.Option([flag, key.replace(".", "__")], **given)
