"""From a checkpoint to answers: classes, label maps and masks of photographs."""
