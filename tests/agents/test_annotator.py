"""The measuring annotator on painted clips whose truth is known."""

import numpy as np

from agents.annotator import Annotator, AnnotatorConfig
from schemas.clip import Clip
from schemas.jobs import AnnotatorJob
from schemas.mask import encode
from schemas.mention import MentionSet
from schemas.track import ObjectMasks, Track, TrackSet

HEIGHT, WIDTH, FPS, NUM = 120, 160, 10.0, 40
CLIP = Clip(
    clip_id="clip",
    source_id="source",
    video="a.mp4",
    video_sha256="ab" * 32,
    license="CC0-1.0",
    start_s=2.0,
    end_s=6.0,
    start_frame=20,
    end_frame=60,
    fps=FPS,
    height_px=HEIGHT,
    width_px=WIDTH,
    caption="A red car passes a man.",
)


def box(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[int(y) : int(y + height), int(max(x, 0)) : int(max(x + width, 0))] = True
    return mask


class Painted:
    """A frame source that paints the boxes, and counts its reads."""

    def __init__(self, shapes, size=(HEIGHT, WIDTH)):
        self.images = np.full((NUM, HEIGHT, WIDTH, 3), 200, np.uint8)
        for masks, colour in shapes:
            for image, mask in zip(self.images, masks, strict=True):
                if mask is not None:
                    image[mask] = colour
        self.reads = []

    def read(self, clip, frame_idx, long_side_px):
        self.reads.append((list(frame_idx), long_side_px))
        step = -(-WIDTH // long_side_px)
        return self.images[[index - clip.start_frame for index in frame_idx], ::step, ::step]


def track(number, noun, detector_class, masks):
    return Track(
        track_id=f"t{number}",
        clip_id="clip",
        mention_id=f"m{number}",
        noun=noun,
        masks=ObjectMasks(
            detector_class=detector_class,
            frame_idx=tuple(range(20, 20 + NUM)),
            frame_time_s=tuple(2.0 + i / FPS for i in range(NUM)),
            rle=tuple(None if mask is None else encode(mask) for mask in masks),
            height_px=HEIGHT,
            width_px=WIDTH,
            score=0.9,
        ),
    )


CAR = [box(5 + 2.75 * i, 60, 40, 30) for i in range(NUM)]
MAN = [box(70, 20, 20, 80)] * NUM


def annotate(tracks, frames, **config):
    job = AnnotatorJob(
        clip=CLIP,
        mentions=MentionSet(clip_id="clip", mentions=(), rejected=()),
        tracks=TrackSet(clip_id="clip", tracks=tuple(tracks), rejected=()),
    )
    return Annotator(AnnotatorConfig(**config), frames).process([job])[0]


def test_facts_and_texts_of_a_car_that_passes_a_man():
    frames = Painted([(CAR, (200, 20, 20))])
    result = annotate([track(0, "car", "car", CAR), track(1, "man", "person", MAN)], frames)
    car, man = result.captions
    assert [share.colour for share in car.appearance_facts.colours] == ["red"]
    assert car.appearance_facts.size == "medium"
    assert car.moving
    assert not man.moving
    assert (car.visible_from_s, car.visible_to_s, car.visible_until_s) == (2.0, 5.9, 4.4)
    # the man covers columns 70 to 89; next to one another counts as touching
    touching = [i for i in range(NUM) if int(45 + 2.75 * i) - 1 >= 69 and int(5 + 2.75 * i) <= 90]
    (contact,) = car.contacts
    assert contact.start_s == 2.0 + touching[0] / FPS
    assert contact.end_s == 2.0 + touching[-1] / FPS
    assert car.appearance == "The car is mostly red. It looks medium-sized in the frame."
    assert car.motion == (
        "The car moves to the right at moderate speed, from the left to the right of the frame. "
        f"In the frame, it touches the man from {touching[0] / FPS:.1f} s to {touching[-1] / FPS:.1f} s. "
        "It is in view for the whole clip."
    )
    assert man.motion.startswith("The man hardly moves and stays in the middle of the frame. In the frame, he touches")


def test_seen_and_rest_split_the_motion():
    turning = [box(5 + 4 * min(i, 24), 60 - 3 * max(0, i - 24), 30, 15) for i in range(NUM)]
    (caption,) = annotate([track(0, "car", "car", turning)], Painted([(turning, (20, 20, 200))])).captions
    assert caption.seen_facts is not None
    assert caption.rest_facts is not None
    assert (caption.seen_facts.direction, caption.rest_facts.direction) == ("right", "up")
    assert caption.seen_facts.end_s == caption.rest_facts.start_s == caption.visible_until_s


def test_a_side_that_is_not_seen_has_no_facts():
    late = [None] * 30 + CAR[30:]
    (caption,) = annotate([track(0, "car", "car", late)], Painted([(late, (200, 20, 20))])).captions
    assert caption.seen_facts is None
    assert caption.rest_facts is not None
    assert "in view from 3.0 s to 3.9 s" in caption.motion


def test_frames_are_read_once_for_all_tracks_and_only_where_seen():
    late = [None] * 20 + CAR[20:]
    frames = Painted([(late, (200, 20, 20))])
    annotate(
        [track(0, "car", "car", late), track(1, "man", "person", MAN)], frames, num_colour_frames=2, long_side_px=80
    )
    ((indices, long_side_px),) = frames.reads
    assert long_side_px == 80
    assert indices == [30, 45, 50, 55]


def test_an_object_seen_in_one_frame_is_rejected_with_the_figure():
    once = [CAR[0]] + [None] * (NUM - 1)
    result = annotate([track(0, "car", "car", once)], Painted([(once, (200, 20, 20))]))
    assert result.captions == ()
    (entry,) = result.rejected
    assert (entry.subject_id, entry.reason) == ("t0", "track_too_short")
    assert "1 of 40 frames" in entry.evidence


def test_the_rim_of_a_mask_does_not_colour_the_object():
    frames = Painted([(CAR, (0, 0, 255))])
    loose = [box(5 + 2.75 * i - 2, 58, 44, 34) for i in range(NUM)]
    (caption,) = annotate([track(0, "car", "car", loose)], frames).captions
    assert [(share.colour, share.share) for share in caption.appearance_facts.colours] == [("blue", 1.0)]


def test_the_label_names_the_rule_and_its_settings():
    label = Annotator(AnnotatorConfig(future_share=0.5), Painted([])).label()
    assert (label.engine, label.weights, label.revision) == ("measured-facts", (), 1)
    assert '"future_share":0.5' in label.config_json
