"""Studies: many runs of one space of settings, on one machine or several.

    space      what is searched: Hydra's override syntax -> distributions -> overrides
    storage    where a study lives, by URL; opening it with errors that a person can act on
    study      asking for trials, taking up those of killed workers, counting to the total
    trial      inside a job: signs of life, figures, pruning, and the trial's end
    jobs       plain multirun and studies: launching, and what came back
    objective  a run's figures, as `main` returns them

Only `run.py` and Hydra's plug-ins (`hydra_plugins/`) import this package.
"""
