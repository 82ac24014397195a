"""Builds the extension where it can be built; everything else stands in pyproject.toml.

Three libraries, so that a missing CUDA runtime never takes the CPU kernel with it: ``zoo._C`` (CPU kernels, LibTorch's stable
ABI), ``zoo._C_cuda`` (CUDA kernels) and ``zoo._native`` (pybind11, no torch). A part that cannot be built is left out, the reason
kept in ``zoo/_build.json`` for ``zoo doctor``; ``ZOO_EXT=require`` makes that an error, ``ZOO_EXT=off`` builds nothing, ``ZOO_CUDA=off``
no CUDA.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("ZOO_EXT", "auto")
FLAGS = ["-O3", "-std=c++17", "-fno-trapping-math", "-fno-math-errno", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}=."]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
PROBE = '#include <string_view>\nint main() { if constexpr (true) return int(std::string_view("").size()); }\n'
reasons: dict[str, str] = {}


def sources() -> dict[str, list[str]]:
    """Library names and their source files, from csrc/sources.txt (shared with CMake)."""
    listing = ROOT / "csrc" / "sources.txt"
    lines = listing.read_text().splitlines() if listing.is_file() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line and not line.startswith("#")]
    return {name.strip(): files.split() for name, files in pairs}


def compiler() -> str:
    """Why no C++17 compiler can be used, or an empty string."""
    command = (os.environ.get("CXX") or "c++").split()
    if shutil.which(command[0]) is None:
        return f"no C++ compiler ({command[0]}); install g++ or clang and reinstall"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text(PROBE)
        ran = subprocess.run(
            [*command, "-std=c++17", "-c", str(probe), "-o", str(probe) + ".o"], capture_output=True, text=True
        )
    return "" if ran.returncode == 0 else f"{command[0]} cannot compile C++17; install a newer one and reinstall"


def find_torch() -> bool:
    """Whether torch can be imported, also from the environment that an isolated build will install into."""
    try:
        import torch

        return True
    except ImportError:
        sys.path.append(sysconfig.get_paths()["purelib"])
    try:
        import torch  # noqa: F401

        return True
    except ImportError:
        return False


def cuda() -> str:
    """Why the CUDA part is left out, or an empty string; sets CUDA_HOME."""
    import torch

    if os.environ.get("ZOO_CUDA") == "off":
        return "switched off by ZOO_CUDA=off"
    if torch.version.cuda is None:
        return "torch is a build without CUDA"
    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")
    if not Path(nvcc).exists():
        return f"no nvcc; install CUDA {torch.version.cuda.split('.')[0]} and reinstall for the GPU kernel"
    shown = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(\S+)", shown)
    version = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if not top or not version or version[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {version[1] if version else '?'} and torch of {torch.version.cuda}; install a matching one and reinstall"
    os.environ["CUDA_HOME"] = str(Path(top[1]).resolve())
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return ""


def extensions() -> list[Extension]:
    """The libraries that can be tried here; why others are not goes into :data:`reasons`."""
    listed = sources()
    if MODE == "off" or not listed:
        reasons["all"] = "switched off by ZOO_EXT=off" if listed else "no sources"
        return []
    if why := compiler():
        reasons["all"] = why
        return []
    made = [
        Extension(
            "zoo._native", listed["_native"], include_dirs=[_pybind11(), "csrc"], extra_compile_args=FLAGS, language="c++"
        )
    ]
    if not find_torch():
        reasons["_C"] = "torch was not there at build time; reinstall with: pip install --no-build-isolation ."
        return made
    no_cuda = cuda()
    from torch.utils import cpp_extension

    common = {"include_dirs": [str(ROOT / "csrc")], "py_limited_api": True}
    made.append(cpp_extension.CppExtension("zoo._C", listed["_C"], extra_compile_args=[*FLAGS, STABLE_ABI], **common))
    if no_cuda:
        reasons["_C_cuda"] = no_cuda
    elif "_C_cuda" in listed:
        nvcc = ["-O3", "-std=c++17", STABLE_ABI, "-DUSE_CUDA"]
        args = {"cxx": [*FLAGS, STABLE_ABI, "-DUSE_CUDA"], "nvcc": nvcc}
        made.append(cpp_extension.CUDAExtension("zoo._C_cuda", listed["_C_cuda"], extra_compile_args=args, **common))
    return made


def _pybind11() -> str:
    import pybind11

    return pybind11.get_include()


def builder(base: type[build_ext]) -> type[build_ext]:
    """``base`` that leaves out a part that fails, deletes old outputs first, and writes down what happened."""

    class Build(base):  # type: ignore[misc, valid-type]
        def build_extension(self, extension: Extension) -> None:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            try:
                if extension.name == "zoo._native":
                    build_ext.build_extension(self, extension)
                else:
                    super().build_extension(extension)
            except Exception as error:
                if MODE == "require":
                    raise
                reasons[extension.name.removeprefix("zoo.")] = (
                    f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
                )

        def run(self) -> None:
            super().run()
            if MODE == "require" and reasons.keys() - {"_C_cuda"}:
                raise SystemExit(f"ZOO_EXT=require, but: {reasons}")
            text = (
                json.dumps({"reasons": reasons, "python": sys.version.split()[0], "torch": _torch_version()}, indent=1) + "\n"
            )
            for folder in {Path(self.build_lib) / "zoo", *([ROOT / "zoo"] if self.inplace or self.editable_mode else [])}:
                if folder.is_dir():
                    (folder / "_build.json").write_text(text)
            for part, why in reasons.items():
                print(f"zoo: {'the extension' if part == 'all' else part} is not built: {why}", file=sys.stderr)

    return Build


def _torch_version() -> str:
    try:
        import torch

        return torch.__version__
    except ImportError:
        return ""


def main() -> None:
    found = extensions()
    base: type[build_ext] = build_ext
    if any(extension.name != "zoo._native" for extension in found):
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension.with_options(no_python_abi_suffix=True)
    needs = ["torch>=2.11"] if reasons.get("_C") and "egg_info" in sys.argv and MODE == "require" else []
    setup(ext_modules=found, cmdclass={"build_ext": builder(base)}, setup_requires=needs)


main()
