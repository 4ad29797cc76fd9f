import asyncio
import contextlib

from condconv_serve.serving.watch import changes


@contextlib.asynccontextmanager
async def watching(store, **options):
    """A queue of what is told."""
    told = asyncio.Queue()

    async def listen():
        async for change in changes(store, **options):
            told.put_nowait(change)

    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(60):
            yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "it never ends by itself"


async def test_a_change_is_told(tmp_path):
    async with watching(tmp_path, interval=60, debounce=0.001) as told:
        while told.empty():  # the system needs a moment before it watches
            (tmp_path / "pear").mkdir(exist_ok=True)
            (tmp_path / "pear" / "aliases.json").write_text("{}")
            await asyncio.sleep(0.02)


async def test_what_changed_before_it_watches_is_told(tmp_path):
    async with watching(tmp_path, interval=3600) as told:
        await told.get()
        await asyncio.sleep(1.2)
        assert told.empty(), "nothing has changed since"


async def test_the_interval_is_enough_where_no_change_is_told(tmp_path):
    given = {}

    async def silent(path, **options):
        given.update(options, path=path)
        while True:
            await asyncio.sleep(options["rust_timeout"] / 1000)
            yield set()

    async with watching(tmp_path, interval=0.005, debounce=0.25, notifications=silent) as told:
        for _ in range(3):
            await told.get()
    assert given == {
        "path": tmp_path,
        "debounce": 250,
        "rust_timeout": 5,
        "yield_on_timeout": True,
        "ignore_permission_denied": True,
    }


async def test_a_system_that_tells_of_nothing_any_more(tmp_path, caplog):
    calls = []

    async def broken(*_, **__):
        calls.append("asked")
        raise OSError("inotify limit reached")
        yield set()

    async with watching(tmp_path, interval=0.005, notifications=broken) as told:
        for _ in range(3):
            await told.get()
    assert len(calls) >= 3, "it is asked again each time"
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.message for record in warnings] == [
        "nothing tells of changes of the model store, so it is looked at every 0.005 s: inotify limit reached"
    ]


async def test_what_ends_is_begun_again(tmp_path):
    async def once(*_, **__):
        yield set()

    async with watching(tmp_path, interval=0.005, notifications=once) as told:
        for _ in range(4):
            await told.get()
