"""The certificate of an exported file, to be read."""

from collections.abc import Iterator, Mapping

from mmlocalattn.tables import markdown_table

LEAST_IMAGES = 20
"""On which a certificate says something."""

_UNITS = {'corner': ' pixels', 'mask': ' of its pixels'}


def lines_of(meta: Mapping) -> Iterator[str]:
    """What the metadata of a file say, in a table and a few lines.

    Args:
        meta: With or without a certificate.
    """
    certificate = meta.get('certificate')
    yield f'config {meta.get("config")}, part {meta.get("part")}, sizes {_sizes(meta)}'
    if certificate is None:
        yield f'no certificate: it was verified on {meta.get("verified", "random tensors")} alone'
        return
    rows = [
        [name, *(_cell(values[kind]) for kind in ('model', 'file'))]
        for name, values in certificate['metrics'].items()
    ]
    latency = certificate['latency_ms']
    for key, name in (('median', 'ms per image, median'), ('p95', 'ms per image, 95 % below')):
        rows.append([name, *(f'{latency[kind][key]:.1f}' for kind in ('model', 'file'))])
    yield markdown_table(('on the same images', 'model', 'file'), rows)
    matched, limits = certificate['matched'], certificate['limits']
    differences = ', '.join(
        f'of a {name} {value:.2g}{_UNITS.get(name, "")}'
        for name, value in matched['largest_difference'].items()
    )
    pairs = f' (same label, IoU from {limits["min_iou"]:g})' if matched['of'] == 'boxes' else ''
    yield (
        f'{100 * matched["share"]:.2f} % of {matched["number"]} {matched["of"]} agree{pairs}'
        + (f'; largest difference {differences}' if differences else '')
    )
    yield _images(certificate)
    yield f'times: {certificate["threads"]} thread(s) of {certificate["cpu"]}'
    yield f'limits: --max-ap-drop {limits["max_ap_drop"]:g} --min-matched {limits["min_matched"]:g}'
    for name, digest in certificate['sha256'].items():
        yield f'sha256 of {name.replace("_", " ")}: {digest}'
    yield 'versions: ' + ', '.join(f'{k} {v}' for k, v in certificate['versions'].items())


def _images(certificate: Mapping) -> str:
    sizes, number = certificate['sizes'], certificate['images']
    least, most = zip(sizes['height'], sizes['width'])
    span = f'{least[0]} x {least[1]} to {most[0]} x {most[1]}'
    few = '' if number >= LEAST_IMAGES else f'; fewer than {LEAST_IMAGES} say little'
    return f'{number} images of {sizes["different"]} size(s), {span}: {certificate["data"]}{few}'


def _sizes(meta: Mapping) -> str:
    return ' '.join('x'.join(map(str, size)) for size in meta.get('sizes', []))


def _cell(value: float | None) -> str:
    return 'none' if value is None else f'{value:.4f}'
