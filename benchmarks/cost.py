"""What a server costs: the processor time and the memory of all its processes, as the kernel counts them."""

from collections.abc import Sequence
from pathlib import Path


def processor_ns(process_ids: Sequence[int]) -> int:
    """Return the processor time that all threads of these processes have used."""
    return sum(
        int((task / "schedstat").read_text(encoding="ascii").split()[0])
        for process_id in process_ids
        for task in Path(f"/proc/{process_id}/task").iterdir()
    )


def memory_bytes(process_ids: Sequence[int]) -> int:
    """Return the proportional set size of these processes: what they share with others counts in part.

    The kernel's own buffers of sockets are not in it.
    """
    return sum(_kilobytes(process_id, "smaps_rollup", "Pss:") for process_id in process_ids) * 1024


def forget_peak(process_ids: Sequence[int]) -> None:
    """Have `peak_bytes` count from here on."""
    for process_id in process_ids:
        Path(f"/proc/{process_id}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(process_ids: Sequence[int]) -> int:
    """Return the most resident memory that these processes had since `forget_peak`, added up."""
    return sum(_kilobytes(process_id, "status", "VmHWM:") for process_id in process_ids) * 1024


def _kilobytes(process_id: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{process_id}/{file}").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"the kernel does not tell the memory of process {process_id}")
