"""Reports of evaluate.py: comparing two, number by number, and a table in Markdown."""

import math
import platform
import time

TOLERANCE = 0.01
_COLUMNS = ("PSNR", "SSIM", "LPIPS", "FVD", "motion")


def differences(report: dict, committed: dict) -> list[str]:
    """A line for each number that is missing or differs from the committed one by more than the tolerance."""
    problems = []
    for task, rows in committed["tasks"].items():
        for what, expected in rows.items():
            found = report["tasks"].get(task, {}).get(what, {})
            for name in _COLUMNS:
                if name not in expected:
                    continue
                if not math.isclose(found.get(name, math.nan), expected[name], rel_tol=TOLERANCE, abs_tol=1e-6):
                    problems.append(f"{task}, {what}: {name} {found.get(name)}, committed {expected[name]}")
    return problems


def markdown_table(report: dict) -> str:
    """The table, and a line with the settings and versions that it was made with."""
    protocol, against = report["protocol"], report["truth against other truth"].get("FVD", math.nan)
    itself = report["truth against itself"].get("FVD", math.nan)
    lines = ["| task | what | PSNR | SSIM | LPIPS | FVD | motion |", "|---|---|---|---|---|---|---|"]
    for task, rows in report["tasks"].items():
        for what, row in rows.items():
            formats = {"PSNR": ".2f", "SSIM": ".3f", "LPIPS": ".4f", "FVD": ".0f", "motion": ".2f"}
            cells = [format(row[name], formats[name]) if name in row else "-" for name in _COLUMNS]
            lines.append(f"| {task} | {what} | {' | '.join(cells)} |")
    made = time.strftime("%Y-%m-%d", time.gmtime())
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    lines += [
        "",
        f"{protocol['clips']} held-out clips, {protocol['steps']} {protocol['sampler']} steps. True clips against "
        f"as many other true clips: FVD {against:.0f}; against themselves: {itself:.1g}. "
        f"Python {platform.python_version()}, {versions}, {made}.",
    ]
    return "\n".join(lines)
