"""What the tests measured of the kernels' text, told at the end of the run."""


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        for what, said in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{what} {said}")
