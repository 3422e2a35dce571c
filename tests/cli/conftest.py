"""What `make prove-cluster` says at its end: what befell each cluster, and what its clients were told."""

CHAOS = "chaos"
"""The property of a test that is said."""


def pytest_terminal_summary(terminalreporter):
    """Print a line for each kind of fault, whichever process proved it."""
    lines = [
        f"{report.duration:6.1f} s  {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == CHAOS
    ]
    if lines:
        terminalreporter.section("what befell the clusters")
        for line in sorted(lines, reverse=True):
            terminalreporter.write_line(line)
