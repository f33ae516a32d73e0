"""Findings in lines for people, and how much is looked at."""

from mmlocalattn.data.findings import Budget, Finding, first_of_each_kind


def test_message() -> None:
    assert Finding('error', 'ids', 'a.json', 'image 3', 'bad').message == 'a.json, image 3: bad'
    assert Finding('note', 'ids', 'a.json', '', 'odd', 'Mend it').message == 'a.json: odd. Mend it'


def test_errors_come_first_and_many_are_counted() -> None:
    findings = [
        Finding('note', 'images left out', 'a.json', '', 'some'),
        *(Finding('error', 'masks', 'a.json', f'annotation {i}', 'no mask') for i in range(4)),
        Finding('error', 'masks', 'b.json', 'annotation 0', 'no mask'),
        *(Finding('error', 'missing image', f'{i}.jpg', '', 'is not there') for i in range(3)),
    ]
    assert first_of_each_kind(findings, 2) == [
        'error: a.json, annotation 0: no mask',
        'error: a.json, annotation 1: no mask',
        'error: and 2 more like it (masks)',
        'error: b.json, annotation 0: no mask',
        'error: 0.jpg: is not there',
        'error: 1.jpg: is not there',
        'error: and 1 more like it (missing image)',
        'note: a.json: some',
    ]


def test_items_are_spread_evenly() -> None:
    budget = Budget(items=4)
    assert list(budget.choose(range(10), 'images')) == [0, 2, 5, 7]
    assert list(budget.choose(range(3), 'maps')) == [0, 1, 2]
    assert budget.skipped == ['6 of 10 images']
    assert list(budget.choose(range(10), 'annotations', times=2)) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_first_items() -> None:
    budget = Budget(items=4, spread=False)
    assert list(budget.choose(range(10), 'images')) == [0, 1, 2, 3]


def test_all_items_with_progress() -> None:
    names = []

    def progress(items: range, name: str) -> range:
        names.append(name)
        return items

    budget = Budget(progress=progress)
    assert list(budget.choose(range(10), 'images')) == list(range(10))
    assert (names, budget.skipped) == (['images'], [])


def test_time_is_over() -> None:
    budget = Budget(seconds=0, started=0)
    assert list(budget.choose(range(10), 'images')) == []
    assert budget.skipped == ['10 of 10 images']


def test_size_of_files() -> None:
    budget = Budget(megabytes=1)
    assert [budget.takes(size) for size in (600_000, 300_000, 600_000)] == [True, True, False]
    assert Budget().takes(10**12)
