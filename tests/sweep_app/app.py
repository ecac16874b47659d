"""A Hydra program with a cheap task, for tests of the sweepers."""

import os
import time

import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    """A parabola with its best at x = 1, n = 3; some jobs fail."""
    if config.log:
        with open(config.log, "a", encoding="utf-8") as file:
            file.write(f"begin {config.x} {config.n} {os.getpid()}\n")
    time.sleep(config.sleep_s)
    if config.fail_above is not None and config.x > config.fail_above:
        raise ValueError(f"x is {config.x}")
    if config.log:
        with open(config.log, "a", encoding="utf-8") as file:
            file.write(f"end {config.x} {config.n} {os.getpid()} {config.kind}\n")
    value = -((config.x - 1) ** 2) - (config.n - 3) ** 2
    return {"value": value, "size": config.x + config.n}


if __name__ == "__main__":
    main()
