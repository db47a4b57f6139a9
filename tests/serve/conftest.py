"""A tiny model behind a server, or an actor; what is heavy is imported where it is used."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving import Actor, Running

    from foveal.models.family import LoadedModel
    from foveal.serve.limits import ServerSettings


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serving import LINES
    from tiny import SIZES

    from foveal.models.phi3_vision.tiny import write_tiny

    folder = tmp_path_factory.mktemp("serve") / "model"
    write_tiny(folder, 0, SIZES, texts=[*LINES, "\nWhat is the total?"])
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> "LoadedModel":
    from foveal.models.loading import load

    loaded = load(str(tiny_folder), 4)
    loaded.model.eval()
    return loaded


@pytest.fixture
def actor(tiny: "LoadedModel") -> "Actor":
    from serving import Actor

    return Actor(tiny)


@pytest.fixture
def stage(tiny: "LoadedModel", actor: "Actor") -> "Iterator[Callable[..., Running]]":
    """Starts a server of a model named `mine`, spoken by `actor`; others say their own names."""
    from serving import Actor, running

    from foveal.serve.limits import ServerSettings
    from foveal.serve.scheduler import Scheduler
    from foveal.serve.served import Served
    from foveal.serve.server import make_app

    with ExitStack() as stack:

        def start(
            settings: "ServerSettings | None" = None, names: tuple[str, ...] = ("mine",)
        ) -> "Running":
            settings = settings or ServerSettings()
            served = [Served(name, tiny) for name in names]
            others = {name: partial(Actor, tiny, (name,)) for name in names[1:]}
            scheduler = Scheduler({names[0]: lambda: actor, **others})
            app = make_app(served, scheduler, settings)
            return stack.enter_context(running(app, settings.limits))

        yield start


@pytest.fixture
def serve(tiny: "LoadedModel") -> "Iterator[Callable[..., Running]]":
    """Starts a server of the tiny model itself, named `mine`."""
    from serving import running

    from foveal.serve.limits import ServerSettings
    from foveal.serve.served import Served
    from foveal.serve.server import build_app

    with ExitStack() as stack:

        def start(settings: "ServerSettings | None" = None) -> "Running":
            settings = settings or ServerSettings()
            app = build_app([Served("mine", tiny)], settings, lambda _: 2**28)
            return stack.enter_context(running(app, settings.limits))

        yield start
