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
    return sum(_pss_kilobytes(process_id) for process_id in process_ids) * 1024


def _pss_kilobytes(process_id: int) -> int:
    for line in Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"the kernel does not tell the memory of process {process_id}")
