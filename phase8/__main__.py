"""`python -m phase8`: see `phase8.cli`."""

from phase8.output import run_program


def program() -> int:
    """The command that the arguments name."""
    from phase8.cli import main

    return main()


if __name__ == "__main__":
    run_program(program)
