#!/usr/bin/env python
"""Counts what the compiled CUDA kernels ask of a GPU, without one.

    python tools/dev/cuda_counts.py build/cuda/lib/mmlocalattn/_ext*.so
    python tools/dev/cuda_counts.py --compile neighborhood --arch 90 120
    python tools/dev/cuda_counts.py BINARY --expect tools/dev/cuda_counts.json [--update]

For every kernel instance and GPU: registers of a thread, instructions that spill them, shared
memory without what a launch adds, the blocks of the most threads that a multiprocessor then holds
at once (`--dynamic` says what a launch adds), and the main loop: its instructions and the
products of a tensor core (mma) or, without those, the multiply-adds of a lane among them. The main
loop is the one with the most products. `fewest` instructions are on the shortest way through it;
`most` are all that it has but what only a vote of the warp leads to, which is rarely done.

Needs cuobjdump, of a CUDA toolkit or of Triton (a part of torch for CUDA), and c++filt.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

CSRC = Path(__file__).parents[2] / 'mmlocalattn' / 'csrc'
TOLERANCE = 0.02  # of instructions, between versions of nvcc


@dataclass(frozen=True)
class Device:
    """Limits of a multiprocessor, from the tables of the CUDA programming guide."""

    warps: int
    blocks: int
    shared: int  # bytes of all blocks together, of which each gets 1 KB more than it asks for

    def resident_blocks(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that fit at once. Registers are dealt out to warps in units of 256."""
        warps = -(-threads // 32)
        per_warp = -(-registers * 32 // 256) * 256
        by_registers = (1 << 16) // per_warp // 4 * 4 // warps
        by_shared = self.shared // (shared + 1024)
        return min(self.blocks, self.warps // warps, by_registers, by_shared)


DEVICES = {
    80: Device(64, 32, 164 << 10),
    86: Device(48, 16, 100 << 10),
    89: Device(48, 24, 100 << 10),
    90: Device(64, 32, 228 << 10),
    100: Device(64, 32, 228 << 10),
    120: Device(48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Instruction:
    """One of a kernel, its `target` the index of where it may jump."""

    name: str
    is_predicated: bool
    target: int | None


@dataclass(frozen=True)
class Counts:
    """Of one kernel instance on one architecture; `shared` without what a launch adds."""

    threads: int
    registers: int
    spills: int
    shared: int
    products: int  # of the main loop, 0 without one
    fewest: int
    most: int

    @property
    def cost(self) -> float:
        """Instructions per product of the main loop, all that it has; 0 without one."""
        return self.most / self.products if self.products else 0


def stop(message: str) -> NoReturn:
    raise SystemExit(f'error: {message}')


def find_cuobjdump() -> str:
    home = os.getenv('CUDA_HOME') or os.getenv('CUDA_PATH') or '/usr/local/cuda'
    path = os.pathsep.join([os.environ['PATH'], f'{home}/bin'])
    spec = find_spec('triton')
    if spec is not None and spec.origin is not None:
        path += os.pathsep + str(Path(spec.origin).parent / 'backends' / 'nvidia' / 'bin')
    found = shutil.which('cuobjdump', path=path)
    if found is None:
        stop('there is no cuobjdump: install a CUDA toolkit or triton')
    return str(found)


def output_of(command: list[str], given: str = '') -> str:
    result = subprocess.run(command, capture_output=True, text=True, input=given)
    if result.returncode != 0:
        stop(f'{" ".join(command)[:200]}: {result.stderr.strip()[-2000:]}')
    return result.stdout


def sections(text: str, header: str) -> Iterator[tuple[int, str, str]]:
    """Architecture, mangled name and text of every part that begins with a kernel's header."""
    arch = 0
    parts = re.split(rf'^(?:arch = sm_(\d+).*|\s*{header}\s*)$', text, flags=re.MULTILINE)
    for found_arch, name, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        arch = int(found_arch or arch)
        if name:
            yield arch, name, body


LINE = re.compile(
    r'^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?\w+\s+)?([\w.]+)([^;\n]*?)(?:;|\s[&?]|\s+/\*)',
    re.MULTILINE,
)


def instructions(body: str) -> list[Instruction]:
    """Of the SASS of a kernel."""
    lines = LINE.findall(body)
    index = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    meeting_points: dict[str, int | None] = {}  # of the barriers that divergent lanes wait at
    found = []
    for _, predicate, name, operands in lines:
        kind, target = name.partition('.')[0], None
        addresses = re.findall(r'\b0x[0-9a-f]+\b', operands)
        barrier = re.search(r'\bB\d+\b', operands)
        if kind in ('BRA', 'BSSY') and addresses:
            target = index.get(int(addresses[-1], 16))
        if kind == 'BSSY' and barrier:
            meeting_points[barrier[0]], target = target, None
        if kind == 'BSYNC' and barrier:
            target = meeting_points.get(barrier[0])
        found.append(Instruction(name, bool(predicate) or ' P' in operands[:6], target))
    return found


def shortest_way(code: list[Instruction], first: int, last: int) -> list[int]:
    """Indices of the fewest instructions that lead from one to another; empty if none do."""
    came_from = {first: first}
    queue = deque([first])
    while queue:
        i = queue.popleft()
        if i == last:
            way = [i]
            while way[-1] != first:
                way.append(came_from[way[-1]])
            return way
        kind = code[i].name.partition('.')[0]
        ends = kind in ('BRA', 'BSYNC', 'EXIT', 'RET') and not code[i].is_predicated
        followers = [] if ends else [i + 1]
        target = code[i].target
        if target is not None:
            followers.append(target)
        for j in followers:
            if j < len(code) and j not in came_from:
                came_from[j] = i
                queue.append(j)
    return []


def after_votes(code: list[Instruction], first: int, last: int) -> int:
    """Instructions of a loop that a branch after a vote of the warp jumps over."""
    skipped: set[int] = set()
    for i in range(first + 1, last):
        target = code[i].target
        voted = any(code[j].name.startswith('VOTE') for j in (i - 1, i - 2))
        if code[i].name.startswith('BRA') and voted and target is not None and target > i:
            skipped |= set(range(i + 1, min(target, last)))
    return len(skipped)


def main_loop(code: list[Instruction]) -> tuple[int, int, int]:
    """Products, fewest and most instructions of one pass."""
    kinds = ('HMMA', 'FFMA', 'DFMA')
    unit = next((kind for kind in kinds if any(i.name.startswith(kind) for i in code)), None)
    if unit is None:
        return 0, 0, 0
    best, most = (0, 0), 0
    for i, instruction in enumerate(code):
        if instruction.target is None or instruction.target >= i or instruction.name == 'BSYNC':
            continue
        way = shortest_way(code, instruction.target, i)
        products = sum(code[j].name.startswith(unit) for j in way)
        if (products, -len(way)) > best:
            best = products, -len(way)
            most = i + 1 - instruction.target - after_votes(code, instruction.target, i)
    return best[0], -best[1], max(most, -best[1])


def short_name(demangled: str) -> str:
    """`operator::kernel<arguments>` without the namespaces that all of them share."""
    name = re.sub(r'\(anonymous namespace\)::|mmlocalattn::cuda::|c10::|^void ', '', demangled)
    depth = 0
    for i, character in enumerate(name):
        depth += (character == '<') - (character == '>')
        if character == '(' and depth == 0 and i > 0:
            return name[:i]
    return name


def count(binary: Path) -> dict[str, dict[int, Counts]]:
    """Counts by kernel and architecture of a shared library or an object."""
    cuobjdump = find_cuobjdump()
    threads, usage = {}, {}
    elf = output_of([cuobjdump, '-elf', str(binary)])
    for arch, name, body in sections(elf, r'\.nv\.info\.(\w+)'):
        match = re.search(r'EIATTR_MAX_THREADS\s+Format:\s*\w+\s+Value:\s*0x([0-9a-f]+)', body)
        threads[arch, name] = int(match[1], 16) if match else 1024
    text = output_of([cuobjdump, '-res-usage', str(binary)])
    for arch, name, body in sections(text, r'Function (\w+):'):
        numbers = dict(re.findall(r'(\w+):(\d+)', body))
        usage[arch, name] = int(numbers['REG']), int(numbers['SHARED'])
    text = output_of([cuobjdump, '-sass', str(binary)])
    counted = {}
    for arch, name, body in sections(text, r'Function : (\w+)'):
        code = instructions(body)
        spills = sum(i.name.startswith(('LDL', 'STL')) for i in code)
        registers, shared = usage[arch, name]
        shared -= 1024 if shared >= 1024 and arch >= 90 else 0  # what the system keeps of a block
        counted[arch, name] = Counts(
            threads[arch, name], registers, spills, shared, *main_loop(code)
        )
    return by_kernel(counted)


def by_kernel(counted: dict[tuple[int, str], Counts]) -> dict[str, dict[int, Counts]]:
    mangled = sorted({name for _, name in counted})
    names = output_of(['c++filt'], '\n'.join(mangled)).splitlines()
    readable = dict(zip(mangled, map(short_name, names)))
    kernels: dict[str, dict[int, Counts]] = defaultdict(dict)
    for (arch, name), counts in counted.items():
        kernels[readable[name]][arch] = counts
    return dict(sorted(kernels.items()))


def compile_sources(part: str, archs: list[int], folder: Path) -> list[Path]:
    """Compiles the sources whose path contains `part` as the extension's, and prints how long."""
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

    spec = find_spec('mmcv')
    if spec is None or spec.origin is None or shutil.which('nvcc') is None:
        stop('--compile needs nvcc in PATH and an installed mmcv')
    mmcv = Path(str(spec.origin)).parent / 'ops' / 'csrc' / 'common'
    nvidia = find_spec('nvidia')
    roots = (nvidia and nvidia.submodule_search_locations) or ()
    wheels = [path for root in roots for path in Path(root).glob('*/include')]
    folders = [CSRC, mmcv, mmcv / 'cuda', *include_paths()]
    flags = [*COMMON_NVCC_FLAGS, '-O3', '-std=c++17', '-c', '-w', '-Xcompiler', '-fPIC']
    flags += [f'-gencode=arch=compute_{arch},code=sm_{arch}' for arch in archs]
    flags += [f'-I{path}' for path in folders] + [f'-I{path}' for path in wheels]
    seconds = {}
    for source in sorted(CSRC.glob('cuda/**/*.cu')):
        name = str(source.relative_to(CSRC))
        if part in name:
            target, before = folder / f'{source.parent.name}_{source.stem}.o', os.times()
            output_of(['nvcc', *flags, str(source), '-o', str(target)])
            seconds[target] = sum(os.times()[2:4]) - sum(before[2:4])  # of child processes
            print(f'{name}: {seconds[target]:.1f} s of CPU time')
    print(f'{sum(seconds.values()):.1f} s of CPU time in all')
    return list(seconds)


def architecture_for(device: int, compiled: dict[int, Counts]) -> int | None:
    """The compiled code that a device runs: its own, else the newest older of its generation."""
    fitting = [arch for arch in compiled if arch // 10 == device // 10 and arch <= device]
    return max(fitting, default=None)


def occupancy(compiled: dict[int, Counts], dynamic: int = 0) -> dict[int, int]:
    """Blocks per multiprocessor of every device that the code serves."""
    found = {}
    for device, limits in DEVICES.items():
        arch = architecture_for(device, compiled)
        if arch is not None:
            counts = compiled[arch]
            found[device] = limits.resident_blocks(
                counts.threads, counts.registers, counts.shared + dynamic
            )
    return found


def table(kernels: dict[str, dict[int, Counts]], dynamic: int) -> str:
    lines = [
        f'{"kernel":68} {"sm":>4} {"regs":>5} {"spill":>5} {"shared":>7} {"prod":>5} '
        f'{"fewest":>6} {"most":>5}  threads, blocks per multiprocessor'
    ]
    for name, compiled in kernels.items():
        blocks = occupancy(compiled, dynamic)
        for arch, counts in sorted(compiled.items()):
            held = [
                f'{device}:{blocks[device]}'
                for device in blocks
                if architecture_for(device, compiled) == arch
            ]
            lines.append(
                f'{name:68} {arch:4} {counts.registers:5} {counts.spills:5} {counts.shared:7} '
                f'{counts.products:5} {counts.fewest:6} {counts.most:5}  '
                f'{counts.threads:4} {" ".join(held)}'
            )
    return '\n'.join(lines)


def as_figures(kernels: dict[str, dict[int, Counts]]) -> dict[str, dict[str, list[int]]]:
    """What the file of expected figures keeps: the numbers of :class:`Counts`, in its order."""
    return {
        name: {str(arch): list(asdict(counts).values()) for arch, counts in compiled.items()}
        for name, compiled in kernels.items()
    }


def merged(figures: dict[str, dict], counted: dict[str, dict]) -> dict[str, dict]:
    """Figures with those of the counted kernels and architectures replaced."""
    return figures | {name: figures.get(name, {}) | counts for name, counts in counted.items()}


def complaints(kernels: dict[str, dict[int, Counts]], figures: dict) -> list[str]:
    """One line for every expected figure that got worse."""
    found = []
    for name, expected in figures['kernels'].items():
        compiled = kernels.get(name, {})
        archs = sorted(compiled.keys() & {int(arch) for arch in expected})
        if not archs:
            found.append(f'{name} is expected, but gone')
        for arch in archs:
            now, then = compiled[arch], Counts(*expected[str(arch)])
            after, before = occupancy({arch: now}), occupancy({arch: then})
            if now.spills > then.spills:
                found.append(f'{name} sm_{arch}: {now.spills} spills, expected {then.spills}')
            if then.products and not now.products:
                found.append(f'{name} sm_{arch}: no main loop, expected {then.most} instructions')
            elif now.cost > then.cost * (1 + figures['tolerance']):
                loop = f'{now.most} instructions in the main loop, expected {then.most}'
                found.append(f'{name} sm_{arch}: {loop}')
            found += [
                f'{name} sm_{device}: {after[device]} blocks, expected {before[device]}'
                for device in before
                if after[device] < before[device]
            ]
    return found


def write_figures(path: Path, kernels: dict[str, dict[str, list[int]]]) -> None:
    """A kernel a line."""
    lines = [f'  {json.dumps(name)}: {json.dumps(kernels[name])}' for name in sorted(kernels)]
    text = ',\n'.join(lines)
    path.write_text(f'{{\n"tolerance": {TOLERANCE},\n"kernels": {{\n{text}\n}}\n}}\n')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('binaries', nargs='*', type=Path, help='libraries or objects')
    parser.add_argument('--compile', metavar='PART', help='sources of csrc/cuda to compile first')
    parser.add_argument('--arch', nargs='+', type=int, default=[90], choices=DEVICES)
    parser.add_argument('--kernel', default='', help='only kernels whose name matches')
    parser.add_argument('--dynamic', type=int, default=0, help='bytes that a launch adds')
    parser.add_argument('--json', type=Path, help='where the counts go too')
    parser.add_argument('--expect', type=Path, help='fail where figures are worse than these')
    parser.add_argument('--update', action='store_true', help='write these counts there instead')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    kernels: dict[str, dict[int, Counts]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        if args.compile is not None:
            args.binaries += compile_sources(args.compile, args.arch, Path(folder))
        for binary in args.binaries:
            for name, compiled in count(binary).items():
                if re.search(args.kernel, name):
                    kernels[name] |= compiled
    print(table(kernels, args.dynamic))
    if args.json:
        args.json.write_text(json.dumps(as_figures(kernels), indent=1) + '\n')
    if args.expect and args.update:
        figures = json.loads(args.expect.read_text())['kernels']
        write_figures(args.expect, merged(figures, as_figures(kernels)))
    elif args.expect:
        worse = complaints(kernels, json.loads(args.expect.read_text()))
        if worse:
            stop('\n'.join(['figures got worse:', *worse]))


if __name__ == '__main__':
    main()
