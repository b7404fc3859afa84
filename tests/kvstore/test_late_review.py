"""Large deletes that take effect at once, on states that were left in the middle of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.backup import backup_records
from kvstore.dooms import Doom, write_tombstones
from kvstore.errors import ApiError, StateFailed
from kvstore.keys import META_FORMAT, META_NUMBER
from kvstore.late_deletes import LateDelete
from kvstore.store import Store
from tests.kvstore.files import copy_state
from tests.kvstore.snapshots import install
from tests.kvstore.test_large_deletes import ALL, filled
from tests.kvstore.test_late_deletes import finish
from tests.kvstore.test_ranges import fill


async def test_tombstones_that_an_older_version_wrote_ahead_show_once(store: Store, tmp_path: Path) -> None:
    """It wrote them before the switch, and was killed before it. The log brings the delete again, to a
    version that writes them after: those that lie there already are not to be told twice."""
    filled(store, 2000)
    start, stop = b"ck", b"cl"
    work = write_tombstones(store._db, Doom(start, stop, store.revision + 1, 0, 2000), ())
    for _ in range(5):
        next(work)
    work.close()
    store._db.put(META_FORMAT, META_NUMBER.pack(1))
    store.flush()
    left = Store(copy_state(store._path, str(tmp_path / "left")))
    [result] = fill(left, ALL)
    clean = Store(str(tmp_path / "clean"))
    filled(clean, 2000)
    fill(clean, ALL)
    assert isinstance(result, LateDelete) and await left.deleted(result) == 2000
    sent = Store(str(tmp_path / "sent"))
    install(sent, left)
    for each in (left, sent):
        for _ in range(3):
            assert await each.hash_revisions(0) == await clean.hash_revisions(0)
            assert await each.hash_all() == await clean.hash_all()
            assert backup_of(each) == backup_of(clean)
            each.sweep_slice()
        finish(each)
        assert await each.hash_all() == await clean.hash_all()
        each.close()
    clean.close()


async def test_a_count_on_a_state_that_has_failed_is_of_a_delete_that_was_applied(store: Store) -> None:
    """The member ends; that the delete is done it still knows, and "unknown" would be less than that."""
    filled(store, 1000)
    [result] = fill(store, ALL)
    assert isinstance(result, LateDelete)
    failure = store._fail(StateFailed("here", "a read failed"))
    with pytest.raises(ApiError) as caught:
        await store.deleted(result)
    assert caught.value.applied == "yes" and caught.value.__cause__ is failure


def backup_of(store: Store) -> list[tuple[bytes, bytes]]:
    view = store._view()
    found = [record for record in backup_records(view) if record is not None]
    view.close()
    return found
