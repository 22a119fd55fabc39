"""CMake's launcher of nvcc: has ptxas report each kernel's resources, into OBJECT.ptxas and not to the console.

python nvcc.py nvcc OPTIONS...
"""

import re
import subprocess
import sys
from pathlib import Path

# What `ptxas -v` says of code without fault. Anything else, its own performance notes included, is for people to read.
REPORT = re.compile(
    r"ptxas info    : (\d+ bytes gmem|Compiling entry function|Function properties|Used \d+ reg|Compile time)"
    r"|    \d+ bytes stack frame"
)


def main(command: list[str]) -> int:
    done = subprocess.run([*command, "-Xptxas=-v"], stderr=subprocess.PIPE, text=True, errors="replace")
    lines = done.stderr.splitlines(keepends=True)
    sys.stderr.writelines(line for line in lines if not REPORT.match(line))
    report = Path(command[command.index("-o") + 1] + ".ptxas")
    report.write_text("".join(line for line in lines if REPORT.match(line)))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
