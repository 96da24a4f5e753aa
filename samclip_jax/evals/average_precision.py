"""Average precision of masks, COCO's and LVIS's, computed by hotcoco."""

import hotcoco

COCO_DETECTIONS = 100  # of a class in an image that count, the surest
LVIS_DETECTIONS = 300  # of all classes in an image


def average_precision(images, annotations, detections, classes, frequencies=None):
    """{"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"}: shares of 1, the mean over the
    classes; of LVIS "AP_rare", "AP_common" and "AP_frequent" too. What there is no object for is
    left out.

    images, annotations: as in COCO's json, an annotation with iscrowd, its ids those of classes,
    from 1 on. detections: COCO's results, with masks. frequencies: of each class "r", "c" or "f",
    for LVIS, whose images have neg_category_ids and not_exhaustive_category_ids.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    if frequencies:
        for category, frequency in zip(categories, frequencies, strict=True):
            category["frequency"] = frequency
    annotations = [annotation | {"id": i} for i, annotation in enumerate(annotations, 1)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    truth = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(
        truth, truth.load_res(detections), "segm", lvis_style=bool(frequencies)
    )
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU 0.5 to 0.95, recall, class, size], of the most detections
    precision = evaluation.eval["precision"][..., -1]
    parts = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    for size, name in enumerate(("small", "medium", "large"), 1):
        parts[f"AP_{name}"] = precision[..., size]
    for name in ("rare", "common", "frequent") if frequencies else ():
        which = [frequency == name[0] for frequency in frequencies]
        parts[f"AP_{name}"] = precision[:, :, which, 0]
    # -1 where a class has no object
    return {name: part[part > -1].mean() for name, part in parts.items() if (part > -1).any()}
