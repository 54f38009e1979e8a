"""What `dcli --help` and `dcli VERB --help` print."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """One verb: its line in `dcli --help`, its own help, and the config it composes."""

    summary: str
    text: str
    config: str = ""


_TRAIN_KEYS = """\
choices (dcli list CHOICE shows what there is):
  exp=NAME                     a whole recipe
  dataset= process= network= sampler=
  parametrisation= objective= coupling= guidance= optimizer=
  CHOICE.KEY=VALUE             any argument of a choice: network.channels=64

keys:
  trainer.steps=200000         optimiser steps of the whole run
  trainer.batch=128            samples per step; trainer.micro_batch=N per forward pass
  trainer.precision=auto       auto, fp32, bf16, fp16
  trainer.recompute=none       none, norms, blocks, attention: less memory, more time
  trainer.compile=false        torch.compile
  trainer.clip=1.0             largest gradient norm
  trainer.time_limit=12h       save and stop after this time
  optimizer.lr=2e-4            learning rate
  every.log=100 every.save=10000 every.preview=5000
  checkpoint.keep=2 checkpoint.keep_every=0 checkpoint.on_full=stop
  seed=0 name=NAME out=FOLDER device=auto
  init=RUN                     start from the weights of a run
  trainable=GLOB               train these parameters, freeze the rest
  fresh=true                   begin again; old checkpoints are set aside
  plugins=[FILE.py]            your own components
"""

_HYDRA = """\
Hydra's own:
  -m, --multirun               sweep: process=ddpm,edm,flow seed=0,1,2
  hydra/launcher=joblib        its jobs side by side; slurm, submitit_local
  --cfg job                    print the composed config and stop
  --config-dir FOLDER          a folder with configs of your own
"""

VERBS = {
    "train": Verb(
        "train a model; the same command again resumes it",
        f"""\
usage: dcli train [CHOICE=NAME ...] [KEY=VALUE ...]

Train a model. The run lives in runs/<name>-<id>; the same command resumes it.

  dcli train exp=digits
  dcli train dataset=digits process=flow network=unet trainer.steps=2000
  dcli train -m process=ddpm,edm,flow seed=0,1,2

{_TRAIN_KEYS}
{_HYDRA}""",
        "train",
    ),
    "sample": Verb(
        "draw samples from a trained run",
        f"""\
usage: dcli sample ckpt=RUN [KEY=VALUE ...]

Draw samples; the checkpoint is all that is needed. Prints the folder it wrote.

  dcli sample ckpt=runs/digits steps=50 n=64
  dcli sample ckpt=digits sampler=heun label=3 guidance=cfg guidance.scale=3

keys:
  ckpt=RUN                     a run, a checkpoint, or the beginning of a run's name
  n=64 batch=64 seed=0         how many, how many at once (n if less), and which
  steps=50 or nfe=100          steps of the sampler, or denoiser calls
  label=3                      an index, a name, a list to cycle; -1: no class
  sampler=NAME sampler.KEY=VALUE guidance=NAME guidance.KEY=VALUE
  weights=ema                  ema, ema-<half-life>, raw
  format=[png,grid]            png, npz, grid
  trajectory=gif               gif, strip
  encode=FILES                 start where the ODE of given samples ends
  interpolate=[3,7]            n samples on the way from one seed to another
  prompt="To be___"            for text: _ is open, the rest stays
  restore=FILES severity=0.5   start from given samples, spoilt up to t = severity
  out=FOLDER device=auto precision=auto dtype=float32 plugins=[FILE.py]

{_HYDRA}""",
        "sample",
    ),
    "eval": Verb(
        "measure a trained run: likelihood, distances, bounds",
        f"""\
usage: dcli eval ckpt=RUN metric=NAME[,NAME...] [KEY=VALUE ...]

Measure a trained run. Samples are those of `dcli sample` with the same keys, drawn once
and kept; the numbers go to stdout and to RUN/derived/<hash of the weights>/.

  dcli eval ckpt=digits metric=likelihood
  dcli eval ckpt=toy2d metric=w2,mmd n=2000 nfe=20
  dcli eval ckpt=mnist metric=likelihood dataset.split=test n=500

keys:
  ckpt=RUN                     a run, a checkpoint, or the beginning of a run's name
  metric=NAME                  dcli list metric; several: metric=w2,mmd
  metric.KEY=VALUE             an argument of it; of one of several: metric.w2.n=5000
  features=NAME                what fid, kid, ... compare by: inception, classifier
  n=1000 batch=256 seed=0      samples of every metric, how many at once, and which
  seeds=3                      draws of the samples, for a mean and its spread
  cache=~/.cache/dcli          features of data, classifiers and weights are kept there
  steps= nfe= label= sampler= guidance= weights= dtype=    as for `dcli sample`
  dataset.KEY=VALUE            other data: dataset.split=test
  json=false                   one line of JSON instead of a table
  device=auto devices=1 precision=auto plugins=[FILE.py]

{_HYDRA}""",
        "eval",
    ),
    "fit": Verb(
        "find the optimal reverse variance of a trained run",
        f"""\
usage: dcli fit ckpt=RUN [KEY=VALUE ...]

Find what belongs to the weights of a run and keep it beside them, under RUN/derived/.
`guidance=analytic` and `sampler.grid.name=optimal` read it when they sample.

  dcli fit ckpt=digits variance=analytic
  dcli sample ckpt=digits sampler=ancestral steps=10 guidance=analytic

keys:
  ckpt=RUN                     a run, a checkpoint, or the beginning of a run's name
  variance=analytic            one number per time: the mean squared error of x_0
  n=10000 batch=256 seed=0     data used, how many at once, and which
  times=100                    how many; else all that a discrete process knows
  weights=ema                  ema, ema-<half-life>, raw
  dataset.KEY=VALUE            where the data lies: dataset.root=FOLDER
  device=auto precision=auto plugins=[FILE.py]

{_HYDRA}""",
        "fit",
    ),
    "tune": Verb(
        "fit the steps of a sampler to a trained run",
        f"""\
usage: dcli tune ckpt=RUN [KEY=VALUE ...]

Find where a sampler of few steps should take them, for the weights of a run, and keep
it beside them, under RUN/derived/. `sampler.grid=tuned` reads it when it samples.

  dcli tune ckpt=digits nfe=8
  dcli sample ckpt=digits nfe=8 sampler=eab sampler.grid=tuned

keys:
  ckpt=RUN                     a run, a checkpoint, or the beginning of a run's name
  sampler=eab                  a sampler with a grid that draws no noise
  steps=8 or nfe=8             steps of the sampler, or denoiser calls
  n=128 batch=64 seed=0        trajectories, how many at once, and which
  rounds=4                     how often every knot of the grid is moved
  guidance=NAME guidance.KEY=VALUE
  weights=ema                  ema, ema-<half-life>, raw
  device=auto precision=auto plugins=[FILE.py]

{_HYDRA}""",
        "tune",
    ),
    "check": Verb(
        "check a training command without running it",
        f"""\
usage: dcli check [the arguments of `dcli train`]

Find all that is wrong with a training command; print its parameters, FLOPs, memory
and run folder. Reads no data and leaves nothing on disk.

  dcli check exp=ddpm_cifar network.channels=64

{_TRAIN_KEYS}""",
        "train",
    ),
    "doctor": Verb(
        "look at this machine: what is here, what is fast, what is exact",
        """\
usage: dcli doctor [--json]

Print versions, devices, folders, extras, and which promises about equal bits hold here:
a tiny model is trained twice, resumed and sampled from. Exit 5 if something is wrong.

  dcli doctor
  dcli doctor --json
""",
    ),
    "list": Verb(
        "show the components: what they are and what they go with",
        """\
usage: dcli list [ROLE [NAME]] [plugins=[FILE.py]] [--config-dir FOLDER] [--json]

Show every component with one line, its reference and what it can be combined with,
and the names that ROLE= takes; of one name all that is written, and its keys.

  dcli list
  dcli list samplers
  dcli list sampler heun
  dcli list exp --json
""",
    ),
    "runs": Verb(
        "list, show and compare runs",
        """\
usage: dcli runs ls [FOLDER ...] [sort=KEY] [--json]
       dcli runs show RUN ... [--json]
       dcli runs diff RUN RUN ... [--json]

Read what runs left behind: how they stand, what they were, where they differ. A RUN is
a folder, a folder of runs, or the beginning of a name in runs/.

  dcli runs ls sort=loss
  dcli runs show digits-ddpm
  dcli runs diff digits-ddpm digits-edm

  ls sorts by time (the newest is last), name, step or loss; its folder is runs.
  A run that says it is running on this machine and is not is shown as killed.
""",
    ),
    "sweep": Verb(
        "how the jobs of a sweep stand",
        """\
usage: dcli sweep status [FOLDER ...] [--json]

Every `-m` command keeps its jobs in runs/sweeps/<verb>-<hash of the command>; the same
command again goes on with what is not done. Without a FOLDER: all of them.

  dcli train -m process=ddpm,edm seed=0,1 hydra/launcher=slurm
  dcli sweep status
""",
    ),
    "report": Verb(
        "write runs, their curves and pictures as one HTML file",
        """\
usage: dcli report RUN ... [out=report.html]

Write one page about runs: curves, measurements, where their configs differ, samples,
trajectories, machines, and the command that makes each again. The file holds all of it
and asks for nothing: mail it, or open it anywhere. A RUN is a folder, a folder of runs,
or the beginning of a name in runs/.

  dcli report runs/*
  dcli report digits-ddpm digits-edm out=two.html
""",
    ),
    "completion": Verb(
        "print a completion script for bash or zsh",
        """\
usage: dcli completion bash|zsh

Print a script that completes verbs, choices, their names and keys.

  eval "$(dcli completion bash)"     in ~/.bashrc
  eval "$(dcli completion zsh)"      in ~/.zshrc, after compinit
""",
    ),
}

EXIT_CODES = """\
exit codes:
  0 done   1 bug   2 command or config   3 data   4 checkpoint   5 environment
  6 storage   7 numerics   8 memory   9 worker   10 some jobs of a sweep failed
  128+N stopped by signal N after a clean save
"""


def overview() -> str:
    """The text of `dcli --help`."""
    verbs = "\n".join(f"  {verb:<12} {entry.summary}" for verb, entry in VERBS.items())
    return f"""\
usage: dcli VERB [CHOICE=NAME ...] [KEY=VALUE ...]

Train and sample every diffusion-type model.

verbs (dcli VERB --help tells more):
{verbs}

options:
  --version    print the version
  --debug      show the traceback of every error (or DCLI_DEBUG=1)

{EXIT_CODES}"""
