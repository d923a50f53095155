from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def goal_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One goal cache for the whole session, so that the user's own is neither used nor touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
