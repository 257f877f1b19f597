"""What the tests of the folder loop share: a stand-in for a network, small files, and a run over them."""

from PIL import Image

from lucidnft.images import resize
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.folder import RestoredImage, restore_files
from lucidnft.inference.jobs import plan_jobs


def doubled(lr, keys):
    """Stands for a network: twice the size, no learning."""
    assert len(keys) == len(lr)
    return [RestoredImage(sr) for sr in resize(lr, (lr.shape[2] * 2, lr.shape[3] * 2))]


def touch(folder, *names, size=(4, 3)):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (10, 200, number)).save(folder / name)
    return folder


def run(tmp_path, restore_images=doubled, output=None, *, batch_size=1, image_format="png", **options):
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", image_format=image_format)
    batches = plan_batches(jobs, batch_size)
    return restore_files(batches, restore_images, output, **{"progress": False, **options})
