"""Lets atheris look for bytes that are a fault of the broker: `python -m proofs.looking TARGET SECONDS FOLDER`.

It begins with the corpus, keeps in the folder what reached new lines, and ends with another code than 0 if it found a
fault: the bytes are then in the folder, as `crash-…`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["broker"], enable_loader_override=False):
    from proofs.fuzzing import CORPUS, TARGETS

if __name__ == "__main__":
    target, seconds, folder = sys.argv[1:]
    limits = [f"-max_total_time={seconds}", "-max_len=2048", "-timeout=10", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, folder, str(CORPUS / target)], TARGETS[target])
    atheris.Fuzz()
