"""What protects each row of the fault tables, and the same text without the protection.

`tests/guards.py` takes them away one at a time. Each is the line whose absence lets the row's
fault through: a check, or the step that handles the case.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.planted_faults import Fault


class Guard(NamedTuple):
    """What protects a row: a text in a file of the package, and the same without the guard."""

    file: str
    fault: Fault


GUARDS = {
    "F01": Guard("io/grid.py", Fault("    if close:", "    if True:")),
    "F02": Guard("io/grid.py", Fault("    if not flat:", "    if True:")),
    # Without it a header of no orientation is read by its empty quaternion, as many readers do.
    "F03": Guard("io/grid.py", Fault("if not any(coded.values()):", "if False:")),
    "F04": Guard("io/grid.py", Fault("snapped[:3, :3] = _rotation(affine, path) * spacing", "")),
    "F05": Guard("io/grid.py", Fault("if shear > TRUE_SHEAR:", "if False:")),
    "F06": Guard("io/grid.py", Fault(
        "if not (math.isfinite(grid.pixdim[axis]) and grid.pixdim[axis] > 0):", "if False:")),
    "F07": Guard("io/grid.py", Fault('if ratio > 0.01 and options.affine == "auto":', "if False:")),
    "F08": Guard("io/grid.py", Fault("affine[:3] *= _unit(grid, path)", "pass")),
    "F09": Guard("data/transforms.py", Fault(
        "Orientation(axcodes=plan.orientation, labels=AXIS_LABELS),", "")),
    "F10": Guard("inference/answer.py", Fault('affine = self.placed.meta["original_affine"]',
                                    "affine = self.placed.affine")),
    "F11": Guard("io/grid.py", Fault("if not distance <= GRID_TOLERANCE_MM:", "if False:")),
    "F12": Guard("io/grid.py", Fault("if shapes[0] != shapes[1]:", "if False:")),
    "F13": Guard("io/images.py", Fault("require_same_grid(other, first)", "pass")),
    "F14": Guard("io/header.py", Fault("= grid.sform_code, grid.qform_code", "= 1, 1")),
    "F15": Guard("io/nifti.py", Fault("n == 1 and options.volume is None", "False")),
    "F16": Guard("io/nifti.py", Fault("0 <= options.volume < n", "True")),
    "F17": Guard("inference/scan.py", Fault(
        "if plan.spatial_dims == 3 and (len(shape) == 2 or min(shape) == 1):", "if False:")),
    "F18": Guard("inference/windows.py", Fault(
        "if all(n >= p for n, p in zip(shape, patch, strict=True)):",
                                     "if True:")),
    # The first channel of a colour, or the real part, would pass for the grey value.
    "F19": Guard("io/header.py", Fault('2: "u1", 4:', '128: "u1", 2304: "u1", 2: "u1", 4:')),
    "F20": Guard("io/header.py", Fault('2: "u1", 4:', '1: "u1", 32: "f4", 2: "u1", 4:')),
    "F21": Guard("io/header.py", Fault(".newbyteorder(order)", '.newbyteorder("<")')),
    "F22": Guard("io/header.py", Fault("if slope == 0 or math.isnan(slope):", "if False:")),
    "F23": Guard("io/header.py", Fault("if not math.isfinite(value):", "if False:")),
    "F24": Guard("io/stored.py", Fault("> _EXACT_IN_FLOAT32:", "> 2**62:")),
    "F25": Guard("io/stored.py", Fault('if exact.dtype.kind == "f":', "if False:")),
    "F26": Guard("io/stored.py", Fault('if exact.dtype.kind == "f":', "if False:")),
    "F27": Guard("inference/predictor.py", Fault("if placed.constant:", "if False:")),
    "F28": Guard("inference/sanity.py", Fault("if low >= 0 or high <= 0:", "if False:")),
    "F29": Guard("data/transforms.py", Fault("if spec.clip is not None:", "if False:")),
    "F30": Guard("io/stored.py", Fault("INTEGER_TOLERANCE = 0.01", "INTEGER_TOLERANCE = 0.0")),
    "F31": Guard("io/stored.py", Fault("INTEGER_TOLERANCE = 0.01", "INTEGER_TOLERANCE = 1.0")),
    "F32": Guard("io/stored.py", Fault("    if odd:\n", "    if False:\n")),
    "F33": Guard("io/images.py", Fault(
        "_array(labels, like), np.uint8 if n_classes <= 255",
        "_array(labels, like), np.uint8 if True")),
    # Slope and intercept are those of a fresh header, with this guard or without it.
    "F34": Guard("io/images.py", Fault("return values.astype(dtype)",
                                       "return values.astype(np.float32)")),
    "F35": Guard("io/safety.py", Fault("    except EOFError:", "    except ZeroDivisionError:")),
    "F36": Guard("io/safety.py", Fault("while chunk := stream.read(_CHUNK):", "while False:")),
    "F37": Guard("io/safety.py", Fault("packed = file_head(path, 2) == GZIP_MAGIC",
                                       'packed = path.name.lower().endswith(".gz")')),
    "F38": Guard("io/header.py", Fault("known = safety.describe(head)", "known = None")),
    "F39": Guard("io/safety.py", Fault("if claimed > (size", "if False and claimed > (size")),
    "F40": Guard("io/safety.py", Fault("if rest > TRAILING_LIMIT:", "if False:")),
    "F41": Guard("io/header.py", Fault("        if length < 1:", "        if False:")),
    "F42": Guard("io/safety.py", Fault("if stat.S_ISDIR(status.st_mode):", "if False:")),
    "F43": Guard("io/names.py", Fault(
        '"".join("_" if unicodedata.category(c) == "Cc" else c for c in name)', "name")),
    "F44": Guard("batch/cases.py", Fault("if channel in other:", "if False:")),
    "F45": Guard("io/dicom/geometry.py", Fault("    at = int(odd[0])\n", "    return\n")),
    "F46": Guard("io/dicom/geometry.py", Fault("UNEVEN = 0.01", "UNEVEN = 1.0")),
    "F47": Guard("io/dicom/geometry.py", Fault("if sideways > 2 * ROUNDING_MM", "if False")),
    # Without it the first frame at each position is taken and the others are lost.
    "F48": Guard("io/dicom/geometry.py", Fault("    if n == 1:\n", "    if True:\n")),
    "F49": Guard("io/dicom/series.py", Fault("if len(scans or groups) > 1:", "if False:")),
    "F50": Guard("io/dicom/series.py", Fault("if n < FEWEST and not named:", "if False:")),
    "F51": Guard("io/dicom/headers.py", Fault("if kind in _NOT_SCANS:", "if False:")),
    "F52": Guard("io/dicom/headers.py", Fault("levels if n == 1 else levels[:-1]", "levels")),
    # Frames without a place are dropped, as some readers do.
    "F53": Guard("io/dicom/geometry.py", Fault(
        "    _require_places(frames)\n",
        "    frames = [f for f in frames if f.position and f.orientation and f.spacing]\n")),
    "F54": Guard("io/dicom/geometry.py", Fault("key=lambda f: along[id(f)])",
                                               "key=lambda f: f.instance or 0)")),
    "F55": Guard("io/dicom/geometry.py", Fault("if len(groups) == 1:", "if True:")),
    "F56": Guard("io/dicom/reader.py", Fault("values_of(frame, numbers, header)",
                                             "values_of(volume[0], numbers, header)")),
    "F57": Guard("io/dicom/pixels.py", Fault("    if inverts(header):", "    if False:")),
    "F58": Guard("io/dicom/pixels.py", Fault("        if how is None:", "        if False:")),
    "F59": Guard("io/dicom/pixels.py", Fault("if len(data) < claimed:", "if False:")),
    "F60": Guard("io/dicom/dataset.py", Fault("path.read_bytes()[start:], limit)",
                                              "path.read_bytes()[start:])")),
    "F61": Guard("io/dicom/decoder_child.py", Fault(
        '    _limit(job["memory"], job["out_bytes"])', "    pass")),
    "F62": Guard("io/dicom/dataset.py", Fault(' or _starts_like_dicom(head)', "")),
    "F63": Guard("io/dicom/dataset.py", Fault(
        'head[PREAMBLE:] == b"DICM" and head.startswith(', "False and head.startswith(")),
    "F64": Guard("io/dicom/pixels.py", Fault("if header.bits_stored == header.bits_allocated:",
                                             "if True:")),
    "F65": Guard("io/dicom/headers.py", Fault('[] if value is None or value == "" else value',
                                              "value")),
    "F66": Guard("io/dicom/sources.py", Fault(
        "if odd or not path.resolve().is_relative_to(root):", "if False:")),
    # The planes in the order of the array, wherever the affine says they lie.
    "F67": Guard("io/dicom_seg.py", Fault(
        "affine = reference.affine[:, [2, 1, 0, 3]]", "affine = np.eye(4)")),
    "F68": Guard("io/dicom_reference.py", Fault(
        "if str(header[keyword].value) != str(wanted):", "if False:")),
    "F69": Guard("data/transforms.py", Fault("    if missing:\n", "    if False:\n")),
    "F70": Guard("checkpoint.py", Fault("    if differing:\n", "    if False:\n")),
    "F71": Guard("checkpoint.py", Fault("!= expected:\n", "== 0:\n")),
    "F72": Guard("inference/sanity.py", Fault("if share == 0:", "if False:")),
    "F73": Guard("memory.py", Fault("now.host_bytes(on_host=device is None) > host", "False")),
    "F74": Guard("memory.py", Fault("if voxels * READ_BYTES > host:", "if False:")),
    "F75": Guard("data/caselist.py", Fault("    if doubles:\n", "    if False:\n")),
    "F76": Guard("data/list_checks.py", Fault("    if shared:\n", "    if False:\n")),
    "F77": Guard("metrics/masks.py", Fault("0.0, 0.0, diagonal_mm, diagonal_mm",
                                     "0.0, 0.0, math.nan, math.nan")),
    "F78": Guard("metrics/masks.py", Fault('"both_empty", math.nan, math.nan, math.nan, math.nan',
                                     '"scored", 1.0, 1.0, 0.0, 0.0')),
    "K01": Guard(
        "checkpoint.py",
        Fault('prefix=".new_"', 'prefix="step_9"'),
    ),
    "K02": Guard("checkpoint.py", Fault("    except OSError as", "    except EOFError as")),
    "K03": Guard("training/fit.py", Fault("== 0 or last or stop:", "== 0 or last:")),
    "K04": Guard("training/resume.py", Fault("state.average.tensors[name].copy_(value)", "pass")),
    "K05": Guard("checkpoint.py", Fault("if _is_whole(candidate):", "if True:")),
    "K06": Guard("training/resume.py", Fault("if changed and not allow_mismatch:", "if False:")),
    "K07": Guard("training/processes.py", Fault("_loader_died(training_set, error) or ", "")),
    "K08": Guard("data/unreadable.py", Fault("if len(self.lines) > self.allowed:", "if False:")),
    "K09": Guard("training/fit.py", Fault(">= training.stop_after_bad_losses:", "< 0:")),
    "K10": Guard("batch/run.py", Fault("or entry.made_from != made_from", "")),
    "K11": Guard("batch/one_case.py", Fault("except Exception as", "except EOFError as")),
    "K12": Guard("batch/manifest.py", Fault("entry.owner == self.owner", "True")),
    "K13": Guard("files.py", Fault('f".{secrets.token_hex(8)}.tmp"', '".one.tmp"')),
    "K14": Guard("batch/run.py", Fault("if out.resolve() in folders:", "if False:")),
    "K15": Guard("inference/predictor.py", Fault(
        "except torch.OutOfMemoryError", "except EOFError")),
    "K16": Guard("io/dicom/pixels.py", Fault("elif code == -KILLED:", "elif False:")),
    "K17": Guard("files.py", Fault("os.fsync(stream.fileno())", "pass")),
    "K18": Guard("training/processes.py", Fault(" or _rank_died(world, error)", "")),
    "K20": Guard("batch/one_case.py", Fault("    _remove_images(out, name)\n", "")),
    "K21": Guard("batch/manifest.py", Fault("BEGIN IMMEDIATE", "BEGIN DEFERRED")),
    "K22": Guard("inference/noise.py", Fault(
        "Generator(np.random.Philox(key=key, counter=counter))",
                                   "default_rng()")),
}  # fmt: skip
