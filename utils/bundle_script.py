"""run.sh: the commands that send a bundle, each with what it does, what it costs and how to undo it."""

import shlex
from pathlib import Path

from utils.bundle_checks import DATASET_FILE, KERNEL_FILE, files_of, parts
from utils.environment import COMPETITION, read_json, write_atomic

COSTS = {  # of each notebook's step, in order
    "explore": "minutes on a CPU, no GPU hours",
    "preprocess": "an hour or more on a CPU, no GPU hours",
    "train": "its run time, at most 12 hours, of the week's 30 GPU hours",
    "tune_threshold": "minutes on a CPU, no GPU hours",
    "report": "its run time, some minutes, of the week's 30 GPU hours",
    "submit": "its run time on the visible test images, some minutes, of the week's 30 GPU hours",
}
SCRIPT = r"""#!/usr/bin/env bash
# Sends this bundle to Kaggle, one step after the other:  bash run.sh STEP...
# Steps, in order: @STEPS@
# With trained weights the short way is:  bash run.sh datasets submit score
# Without a step nothing is sent, and it stops at the first error. Each step says below what it does, costs, and how to undo it.
# It needs the kaggle client with your credentials, and the competition's rules accepted on its page.

# Some errors leave the client with exit code 0, so what it says is read too.
tell() {
  printf '+ %s\n' "$*"
  "$@" 2>&1 | tee last.log
  if grep -qiE 'error:|unsuccessful|not valid|could not|skipping' last.log; then
    echo 'Stopped: see what the client said above.' >&2
    return 1
  fi
}

# The first time a dataset is created, later it gets a version. -r zip: the client skips folders otherwise; Kaggle unpacks them.
# A kernel that is pushed before its dataset is ready runs without it, or on the old version: wait.
dataset() {
  if kaggle datasets status "$2" > last.log 2>&1; then
    tell kaggle datasets version -p "$1" -r zip -m @MESSAGE@
  else
    tell kaggle datasets create -p "$1" -r zip
  fi
  for _ in $(seq 180); do
    sleep "${PAUSE:-10}"
    case "$(kaggle datasets status "$2")" in
      *ready*) return 0 ;;
      *failed* | *deleted*) break ;;
    esac
  done
  echo "$2 is not ready: look at https://www.kaggle.com/datasets/$2" >&2
  return 1
}

# A push runs the notebook; its version is kept for the step score.
kernel() {
  tell kaggle kernels push -p "$1"
  sed -n 's/^Kernel version \([0-9]*\) successfully pushed.*/\1/p' last.log > "$1.version"
  while sleep "${PAUSE:-60}"; do
    kaggle kernels status "$2" | tee last.log
    case "$(cat last.log)" in
      *status*COMPLETE* | *status*complete*) return 0 ;;
      *status*ERROR* | *status*error* | *status*CANCEL* | *status*cancel*) break ;;
    esac
  done
  echo "$2 failed: see its log with  kaggle kernels logs $2" >&2
  return 1
}

@FUNCTIONS@
main() {
  set -euo pipefail
  cd "$(dirname "${BASH_SOURCE[0]}")"
  if [ $# -eq 0 ]; then
    sed -n '2,/^$/s/^# //p' run.sh
  fi
  for step in "$@"; do
    case ' @STEPS@ ' in
      *" $step "*) ;;
      *) echo "There is no step $step; steps are: @STEPS@" >&2; return 2 ;;
    esac
  done
  if [ $# -gt 0 ] && ! command -v kaggle > /dev/null; then
    echo 'There is no command kaggle here: source .venv/bin/activate in the kit, or pip install kaggle.' >&2
    return 1
  fi
  for step in "$@"; do "$step"; done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main "$@"; fi
"""


def write_script(bundle: Path, message: str) -> None:
    """Write ``run.sh`` into a bundle that holds its datasets and kernels.

    Parameters
    ----------
    bundle : Path
    message : str
        Goes with each version and submission: what was sent.
    """
    quoted = shlex.quote(message)
    functions = [_datasets_step(bundle), *(_kernel_step(bundle, name) for name in COSTS), _score_step(bundle, quoted)]
    text = SCRIPT.replace("@FUNCTIONS@", "\n".join(functions)).replace("@MESSAGE@", quoted)
    with write_atomic(bundle / "run.sh") as temporary:
        temporary.write_text(text.replace("@STEPS@", " ".join(("datasets", *COSTS, "score"))), encoding="utf-8")


def _datasets_step(bundle: Path) -> str:
    lines = []
    for part in parts(bundle, "datasets"):
        name, size = read_json(part / DATASET_FILE)["id"], sum(path.stat().st_size for path in files_of(part)) / 1e6
        lines.append(
            f"  # Sends {part.name} as a private dataset. Costs: {size:.1f} MB to upload, of the 200 GB for private datasets."
            f" Undo: kaggle datasets delete {name}"
        )
        lines.append(f"  dataset datasets/{part.name} {name}")
    return "\n".join(["datasets() {", *lines, "}\n"])


def _kernel_step(bundle: Path, name: str) -> str:
    kernel = _kernel_id(bundle, name)
    comment = f"# Runs {name}.ipynb on Kaggle, private, and waits. Costs: {COSTS[name]}. Undo: kaggle kernels delete {kernel}"
    return f"{name}() {{\n  {comment}\n  kernel kernels/{name} {kernel}\n}}\n"


def _kernel_id(bundle: Path, name: str) -> str:
    return read_json(bundle / "kernels" / name / KERNEL_FILE)["id"]


def _score_step(bundle: Path, message: str) -> str:
    return (
        "score() {\n"
        "  # Has Kaggle run submit.ipynb on the hidden test images, up to 9 hours, and score it."
        " Costs: one of the day's 5 submissions. Undo: there is none.\n"
        f"  tell kaggle competitions submit -c {COMPETITION} -k {_kernel_id(bundle, 'submit')} \\\n"
        f'    -v "${{VERSION:-$(cat kernels/submit.version)}}" -f submission.csv -m {message}\n'
        "}\n"
    )
