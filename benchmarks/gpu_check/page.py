"""The report of ``make gpu-check`` as one Markdown page."""

from statistics import median

from benchmarks.tables import markdown, spread

DEVICE = "device"  # the check that describes the machine
SPEED = "speed-"  # how the names of checks that only measure begin
SYMBOLS = {"passed": "passed", "failed": "**FAILED**", "skipped": "skipped", "not run": "**not run**"}
MACHINE = ("gpus", "capability", "bfloat16", "nvidia-smi", "cuda", "cudnn", "torch", "timm", "python", "cpu", "cores", "commit")


def make_page(report: dict) -> str:
    """Return the page: verdict, machine, checks, speed, and what to do about each failure."""
    results = report["results"]
    parts = [_verdict(report), _machine(results), _checks(results), _speeds(results), _reasons(results), _warnings(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(report: dict) -> str:
    results = report["results"]
    names = {status: [result["name"] for result in results if result["status"] == status] for status in SYMBOLS}
    minutes = f"in {report['seconds'] / 60:.1f} minutes"
    lines = ["# GPU check", ""]
    if names["failed"]:
        lines.append(f"**{len(names['failed'])} of {len(results)} checks failed** ({', '.join(names['failed'])}) {minutes}.")
    else:
        lines.append(f"**No check failed:** {len(names['passed'])} of {len(results)} passed {minutes}.")
    if names["skipped"]:
        lines.append(f"Skipped: {', '.join(names['skipped'])}.")
    if names["not run"]:
        budget = f"{report['budget_s'] / 60:.0f} minutes"
        lines.append(f"**Not run, as the time ({budget}) was up: {', '.join(names['not run'])}.**")
    if _description(results).get("checks_run_on") != "cuda":
        lines += ["", "**NO GPU: everything ran at toy size on the CPU. This tests the checks, not a GPU.**"]
    return "\n".join(lines)


def _description(results: list[dict]) -> dict:
    return next((result["numbers"] for result in results if result["name"] == DEVICE), {})


def _machine(results: list[dict]) -> str:
    machine = _description(results)
    return "; ".join(f"{name} {_number(machine[name])}" for name in MACHINE if machine.get(name))


def _checks(results: list[dict]) -> str:
    rows = []
    for result in results:
        elsewhere = result["name"] == DEVICE or result["name"].startswith(SPEED)
        measured = "" if elsewhere else _number(result["numbers"])
        rows.append([result["name"], SYMBOLS[result["status"]], f"{result['seconds']:.0f}", result["proves"], measured])
    return "\n".join(markdown(("check", "result", "s", "what it shows", "measured"), rows))


def _number(value) -> str:
    """Return a measured value as short text; a dictionary as its names and values."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_number(each)}" for name, each in value.items() if each != [])
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _speeds(results: list[dict]) -> str:
    rows = [result["numbers"] for result in results if result["name"].startswith(SPEED) and result["numbers"]]
    if not rows:
        return ""
    head = ("network", "px", "batch", "format", "images/s", "loop over bare step", "of the matrix rate (bare step)")
    head += ("waits for data", "plain timm loop, images/s", "timm's benchmark, images/s", "peak memory")
    rates = ", ".join(f"{row['matrix_tflops']:.3g} TFLOP/s ({row['precision']})" for row in rows)
    rounds = len(rows[0]["images_per_s"])
    caption = f"Speed of training, medians of {rounds} interleaved round(s) [lowest, highest]. timm's benchmark and peak memory"
    caption += f" were measured once, outside of the rounds, so they have no brackets. Matrix rate: {rates}."
    return "\n".join([caption, "", *markdown(head, map(_speed_row, rows))])


def _speed_row(row: dict) -> list[str]:
    shares = f"{spread(row['share_of_rate'], '.0%')} ({median(row['bare_share_of_rate']):.0%})"
    cells = [row["network"], "{} × {}".format(*row["size"]), str(row["batch"]), row["precision"]]
    cells += [spread(row["images_per_s"], ".3g"), spread(row["over_bare"], ".2f"), shares, spread(row["data_wait"], ".1%")]
    plain = spread(row["plain_images_per_s"], ".3g")
    return cells + [plain, f"{row['timm_images_per_s']:.3g}", f"{row['peak_gib']:.2f} GiB"]


def _reasons(results: list[dict]) -> str:
    """Return a section for each check that failed, and the reasons of those that were skipped."""
    parts = []
    for result in results:
        if result["status"] == "failed":
            again = f"python -m benchmarks.gpu_check --only {result['name']}"
            text = f"## {result['name']} failed\n\n{result['reason']}\n\n{result['remedy']} To run it alone: `{again}`."
            trace = "\n".join(result["traceback"])
            parts.append(f"{text}\n\n```\n{trace}\n```" if trace else text)
    skipped: dict[str, list[str]] = {}
    for result in results:
        if result["status"] == "skipped":
            skipped.setdefault(result["reason"], []).append(result["name"])
    if skipped:
        parts.append("\n".join(f"- {', '.join(names)}: {reason}" for reason, names in skipped.items()))
    return "\n\n".join(parts)


def _warnings(results: list[dict]) -> str:
    lines = [f"- {result['name']}: {line}" for result in results for line in result["warnings"]]
    return "\n".join(["Warnings of the libraries:", "", *lines]) if lines else ""
