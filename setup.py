"""Builds the extension where possible and the description for package indexes; all other settings are in pyproject.toml.

Three libraries, so that the CPU kernels do not depend on the CUDA runtime: ``zoo._C`` (CPU kernels, LibTorch's stable
ABI), ``zoo._C_cuda`` (CUDA kernels) and ``zoo._native`` (pybind11, no torch). A library that cannot be built is skipped, and the
reason is written to ``zoo/_build.json`` for ``zoo doctor``.

The first two use Python's limited API, so that one wheel serves every Python from 3.11 on. ``zoo._native`` in it is for the
version that built the wheel; under others ``zoo.numpy`` uses ``zoo._C``.

Environment: ``ZOO_EXT=require`` makes a skipped library an error, ``ZOO_EXT=off`` builds none, ``ZOO_CUDA=off`` builds none for CUDA,
and ``ZOO_CUDA=require`` makes a missing nvcc an error too.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
EXT, CUDA = os.environ.get("ZOO_EXT", "auto"), os.environ.get("ZOO_CUDA", "auto")
PARTS = ("_C", "_C_cuda", "_native")
# without the two -fno options the compiler does not vectorise; error messages name sources relative to the root
FLAGS = ["-O3", "-g0", "-std=c++17", "-fno-trapping-math", "-fno-math-errno", f"-ffile-prefix-map={ROOT}=."]
STABLE_ABI = (
    "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on torch 2.10 and later, independent of the version at build time
)
ARCHITECTURES = "7.5;8.0;9.0+PTX"  # if no GPU is visible
BUILDING = bool({"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"} & set(sys.argv))
PROBES = {  # tried in this order; the first that does not compile determines the message
    '#include <string_view>\nint f() { if constexpr (true) return int(std::string_view("").size()); }\n': "{} cannot compile "
    "C++17; install a newer g++ or clang and reinstall",
    "#include <Python.h>\n": "Python.h is missing; install Python's headers (apt install python3-dev) and reinstall",
}
OLDEST = "cp311"  # the oldest Python that a wheel supports, as in requires-python
ONE_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")  # a free-threaded Python has no stable ABI (abi3)
UNWRITTEN = "source file missing"
reasons: dict[str, str] = {}


def description() -> str:
    """README.md without pictures and with plain text for relative links, which a package index cannot resolve."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n", "", text, flags=re.M)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def sources() -> dict[str, list[str]]:
    """Library names and their source files, from csrc/sources.txt (shared with CMake)."""
    listing = ROOT / "csrc" / "sources.txt"
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line and not line.startswith("#")]
    return {name.strip(): files.split() for name, files in pairs}


def compiler() -> str:
    """Choose the C++ compiler and set CXX (and CC, if Python's own is missing); the reason if there is none, or an empty string."""
    named = os.environ.get("CXX")
    known = [named] if named else [sysconfig.get_config_var("CXX") or "c++", "c++", "g++", "clang++"]
    found = next((name for name in known if shutil.which(name.split()[0])), None)
    if found is None:
        return f"no C++ compiler ({named or 'c++, g++ or clang++'}); install g++ or clang and reinstall"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        include = sysconfig.get_paths()["include"]
        for text, why in PROBES.items():
            source.write_text(text, encoding="utf-8")
            command = [*found.split(), "-std=c++17", f"-I{include}", "-c", str(source), "-o", str(source) + ".o"]
            if subprocess.run(command, capture_output=True).returncode:
                return why.format(found)
    os.environ["CXX"] = found
    if not shutil.which((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]):
        os.environ["CC"] = found
    return ""


def torch_is_here() -> bool:
    """Whether torch is on sys.path or in the environment outside an isolated build, which is then appended."""
    if importlib.util.find_spec("torch") is None:
        sys.path.append(sysconfig.get_paths()["purelib"])
    return importlib.util.find_spec("torch") is not None


def no_cuda() -> str:
    """The reason for skipping CUDA, or an empty string; sets CUDA_HOME before torch.utils.cpp_extension is imported."""
    import torch

    if CUDA == "off":
        return "switched off by ZOO_CUDA=off"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = shutil.which("nvcc", path=f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    major = torch.version.cuda.split(".")[0]
    if nvcc is None:
        return f"no nvcc; install the CUDA {major} toolkit and reinstall for the GPU kernel"
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.+)", dry)  # nvcc on PATH may be a wrapper script
    version = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if not top or not version or version[1] != major:
        return f"nvcc has CUDA {version[1] if version else '?'}, torch {torch.version.cuda}; install the CUDA {major} toolkit and reinstall"
    os.environ["CUDA_HOME"] = str(Path(top[1].strip()).resolve())
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    return ""


def plan() -> list[Extension]:
    """The libraries to build; the reasons for the others are added to :data:`reasons`."""
    listed = sources()
    for part in PARTS:
        absent = [name for name in listed.get(part, ["csrc/sources.txt"]) if not (ROOT / name).is_file()]
        if absent or part not in listed:
            reasons[part] = f"{UNWRITTEN}: {absent[0] if absent else part}"
    why = "switched off by ZOO_EXT=off" if EXT == "off" else compiler()
    if why:
        reasons.clear()
        reasons.update(dict.fromkeys(PARTS, why))
        return []
    made = [*_native(listed), *([] if {"_C", "_C_cuda"} <= reasons.keys() else _torch(listed))]
    return [extension for extension in made if extension.name.removeprefix("zoo.") not in reasons]


def _native(listed: dict[str, list[str]]) -> list[Extension]:
    try:
        import pybind11
    except ImportError:
        reasons["_native"] = "pybind11 is missing; pip install pybind11 and reinstall"
        return []
    flags = [*FLAGS, "-fvisibility=hidden"]
    include = [pybind11.get_include(), "csrc"]
    return [Extension("zoo._native", listed.get("_native", []), include_dirs=include, extra_compile_args=flags, language="c++")]


def _torch(listed: dict[str, list[str]]) -> list[Extension]:
    try:
        if not torch_is_here():
            raise ImportError("not installed")
        cuda = no_cuda()
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:
        why = f"torch could not be imported while building ({str(error).splitlines()[0]}); pip install torch and reinstall"
        reasons.update(dict.fromkeys(("_C", "_C_cuda"), why))
        return []
    common: dict[str, Any] = {"include_dirs": ["csrc"], "py_limited_api": ONE_GIL}
    cxx = [*FLAGS, STABLE_ABI]
    made = [cpp_extension.CppExtension("zoo._C", listed.get("_C", []), extra_compile_args={"cxx": cxx}, **common)]
    if cuda:
        reasons["_C_cuda"] = cuda
    else:
        args = {"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": ["-O3", "-std=c++17", STABLE_ABI, "-DUSE_CUDA"]}
        made.append(cpp_extension.CUDAExtension("zoo._C_cuda", listed.get("_C_cuda", []), extra_compile_args=args, **common))
    return made


class Build(build):
    """Builds in a temporary folder, so that wheels have no old files and parallel builds do not interfere."""

    sub_commands: ClassVar = [
        ("build_py", None),
        ("build_ext", None),
    ]  # build_ext also without libraries: it writes the reasons

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="zoo-build-")
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class Degrade:
    """Mixin of ``build_ext``: deletes old outputs, skips a library that fails, records the reasons."""

    def run(self) -> None:
        inplace = getattr(self, "inplace", False) or getattr(self, "editable_mode", False)
        self.folders = [Path(self.build_lib) / "zoo", *([ROOT / "zoo"] if inplace else [])]  # type: ignore[attr-defined]
        for folder in self.folders:
            for old in [path for part in PARTS for path in folder.glob(f"{part}.*") if path.suffix in (".so", ".dylib")]:
                old.unlink(missing_ok=True)
        if EXT == "require" and (missing := {part: why for part, why in reasons.items() if _required(part)}):
            raise SystemExit(f"zoo: ZOO_EXT=require, but {'; '.join(f'{part}: {why}' for part, why in missing.items())}")
        super().run()  # type: ignore[misc]
        self.note()

    def build_extensions(self) -> None:
        """Build without CUDA if torch rejects the compilers, e.g. an nvcc that does not support this g++."""
        try:
            super().build_extensions()  # type: ignore[misc]
        except RuntimeError as error:
            self.extensions: list[Extension] = [each for each in self.extensions if each.name != "zoo._C_cuda"]
            self.left_out("_C_cuda", error)
            super().build_extensions()  # type: ignore[misc]

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)  # type: ignore[misc]
        except Exception as error:
            self.left_out(extension.name.removeprefix("zoo."), error)

    def left_out(self, part: str, error: Exception) -> None:
        """Record the reason, or raise if every library is required."""
        if EXT == "require":
            raise error
        print(f"zoo: {part}: {error}", file=sys.stderr)
        what = str(error).splitlines()[0][:120] if isinstance(error, RuntimeError) else "it did not compile or link"
        reasons[part] = f"{what}; for details run: pip install -v --no-deps ."

    def copy_extensions_to_source(self) -> None:
        """Copy to the checkout of an editable install, each file in one step: other processes see the old file, none, or the new one."""
        for built in self.folders[0].glob("*.so"):
            fresh = ROOT / "zoo" / f".{built.name}.{os.getpid()}.tmp"
            shutil.copy2(built, fresh)
            fresh.replace(ROOT / "zoo" / built.name)

    def note(self) -> None:
        """Write zoo/_build.json and warn in one line."""
        torch = sys.modules.get("torch")
        facts = {"reasons": reasons, "python": sys.version.split()[0], "torch": str(getattr(torch, "__version__", ""))}
        for folder in [folder for folder in self.folders if folder.is_dir()]:
            fresh = folder / f"._build.json.{os.getpid()}.tmp"
            fresh.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            fresh.replace(folder / "_build.json")
        for why in dict.fromkeys(reasons.values()):
            parts = ", ".join(part for part in reasons if reasons[part] == why)
            print(f"zoo: without {parts}: {why}", file=sys.stderr)


def _required(part: str) -> bool:
    """Whether ZOO_EXT=require applies: the source exists; for CUDA only with ZOO_CUDA=require."""
    return not reasons[part].startswith(UNWRITTEN) and (part != "_C_cuda" or CUDA == "require")


def main() -> None:
    """Declare the libraries if something is built; otherwise declare whether the build needs torch."""
    extensions = plan() if BUILDING else []
    base: type = build_ext
    if "torch.utils.cpp_extension" in sys.modules:
        # without ninja: no gain for three files, and it would have to be on PATH
        base = sys.modules["torch.utils.cpp_extension"].BuildExtension.with_options(use_ninja=False)
    asks = "egg_info" in sys.argv and EXT != "off" and not torch_is_here() and not compiler()
    setup(
        long_description=description(),
        long_description_content_type="text/markdown",
        ext_modules=extensions,
        options={"bdist_wheel": {"py_limited_api": OLDEST}} if ONE_GIL else {},
        cmdclass={"build": Build, "build_ext": type("BuildExt", (Degrade, base), {})},
        setup_requires=["torch>=2.11"] if asks else [],
    )


main()
