"""Hand-made outputs of all five agents, for tests that need a lake full of them but no engine."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from flows.chain import Chain
from flows.doctor import fetch_weights
from flows.plan import Plan, plan_build
from flows.pools import Pools
from flows.profile_config import ROLES, Profile, Role, load_profile
from flows.progress import BuildProgress
from flows.publish import publish_build
from flows.result import BuildResult
from flows.step import BuildRun, run_step
from flows.wiring import UNKNOWN, Site, agent_labels, annotator_needs, identify, make_agent
from infra.builds import BuildCommand
from infra.lake import Lake
from infra.pool import LocalPool
from infra.settings import settings
from infra.synthetic import write_clips
from infra.work import AgentWork
from infra.workbench import clip_id_of
from schemas.caption import AppearanceFacts, CaptionSet, ColourShare, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.mask import encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.quarantine import QuarantineEntry
from schemas.sample import Provenance, Sample, SampleObject, SampleSet, Turn
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Check, Verdict, VerdictSet

QUESTIONS = {
    "short_caption": "<video>\nDescribe <region>.",
    "detailed_caption": "<video>\nWhat of <region>?",
    "qa": "<video>\nWhere is <region>?",
}


class ByHand:
    """Records as agents would make them: of each clip a cat is kept, a dog is not found, a tree is no object."""

    def labels(self, **prompt_hashes: str) -> dict[Role, AgentLabel]:
        return {
            role: AgentLabel(
                agent=role,
                engine="by hand",
                weights=(),
                config_json="{}",
                prompt_hash=prompt_hashes.get(role, ""),
                revision=1,
            )
            for role in ROLES
        }

    def clip(self, clip_id: str = "c1", caption: str = "A cat and a dog by a tree.", **changes: Any) -> Clip:
        whole = {
            "clip_id": clip_id, "source_id": f"row-{clip_id}", "video": f"{clip_id}.mp4", "video_sha256": "0" * 64,
            "license": "CC0-1.0", "start_s": 0.0, "end_s": 1.6, "start_frame": 0, "end_frame": 40, "fps": 25.0,
            "height_px": 64, "width_px": 96, "caption": caption,
        }  # fmt: skip
        return Clip.model_validate(whole | changes)

    def drop(self, clip: Clip, subject_id: str, stage: str, reason: str, noun: str = "") -> QuarantineEntry:
        return QuarantineEntry.model_validate(
            {"subject_id": subject_id, "source_id": clip.source_id, "clip_id": clip.clip_id, "noun": noun}
            | {"stage": stage, "reason": reason, "evidence": "seen by hand"}
        )

    def mentions(self, clip: Clip) -> MentionSet:
        made = tuple(
            Mention(
                mention_id=f"{clip.clip_id}-{noun}", clip_id=clip.clip_id, noun=noun, phrase=f"a {noun}", start_char=0,
                end_char=5, role="subject", number="singular", detector_class=noun, class_similarity=1.0,
                said=SaidAttributes(count=1),
            )
            for noun in ("cat", "dog")
        )  # fmt: skip
        tree = self.drop(clip, f"{clip.clip_id}-tree", "analyzer", "scenery", "tree")
        return MentionSet(clip_id=clip.clip_id, mentions=made, rejected=(tree,))

    def tracks(self, clip: Clip) -> TrackSet:
        frames = tuple(range(clip.start_frame, clip.start_frame + 12))
        masks = ObjectMasks(
            detector_class="cat", frame_idx=frames, frame_time_s=tuple(idx / clip.fps for idx in frames),
            rle=tuple(self._mask(clip, idx) for idx in frames), height_px=clip.height_px, width_px=clip.width_px,
            score=0.9,
        )  # fmt: skip
        cat = Track(
            track_id=f"{clip.clip_id}-t1", clip_id=clip.clip_id, mention_id=f"{clip.clip_id}-cat", noun="cat",
            masks=masks,
        )  # fmt: skip
        dog = self.drop(clip, f"{clip.clip_id}-dog", "segmenter", "not_found", "dog")
        return TrackSet(clip_id=clip.clip_id, tracks=(cat,), rejected=(dog,))

    def captions(self, clip: Clip) -> CaptionSet:
        look = AppearanceFacts(
            detector_class="cat", colours=(ColourShare(colour="red", share=1.0),), size="small", area_share=0.02
        )
        motion = MotionFacts(
            start_s=clip.start_s, end_s=clip.end_s, start_places=("left",), end_places=("right",), direction="right",
            speed="slow", displacement_x_diag=0.2, displacement_y_diag=0.0, speed_diag_per_s=0.1, growth=1.0,
        )  # fmt: skip
        cat = ObjectCaption(
            track_id=f"{clip.clip_id}-t1", mention_id=f"{clip.clip_id}-cat", noun="cat", visible_from_s=clip.start_s,
            visible_to_s=clip.end_s, visible_until_s=clip.end_s, appearance_facts=look, motion_facts=motion,
            seen_facts=None, rest_facts=None, contacts=(), appearance="a red cat", motion="moves right", moving=True,
        )  # fmt: skip
        return CaptionSet(clip_id=clip.clip_id, captions=(cat,), rejected=())

    def verdicts(self, clip: Clip) -> VerdictSet:
        check = Check(name="class", outcome="agrees", score=0.9, detail="a cat")
        kept = Verdict(track_id=f"{clip.clip_id}-t1", keep=True, score=0.9, reason=None, checks=(check,))
        return VerdictSet(clip_id=clip.clip_id, verdicts=(kept,), rejected=())

    def samples(self, clip: Clip) -> SampleSet:
        # not in the order of their ids: whoever writes them must sort
        kinds = ("qa", "detailed_caption", "short_caption")
        made = tuple(self._sample(clip, kind, n) for kind in kinds for n in (2, 1))
        return SampleSet(clip_id=clip.clip_id, samples=made, rejected=())

    def outputs(self, clip: Clip) -> dict[Role, Any]:
        return {
            "analyzer": self.mentions(clip),
            "segmenter": self.tracks(clip),
            "annotator": self.captions(clip),
            "reviewer": self.verdicts(clip),
            "refiner": self.samples(clip),
        }

    def fill(self, chain: Chain, clip: Clip, outputs: Mapping[Role, Any] | None = None) -> None:
        """Put a clip's outputs into the lake, each under its key."""
        for role, output in (self.outputs(clip) if outputs is None else outputs).items():
            chain.store(role).append([(chain.keys(clip)[role], output)])

    def _mask(self, clip: Clip, idx: int) -> str:
        mask = np.zeros((clip.height_px, clip.width_px), np.bool_)
        mask[20:40, 10 + idx % 40 : 30 + idx % 40] = True
        return encode(mask)

    def _sample(self, clip: Clip, kind: str, number: int) -> Sample:
        cat = SampleObject(
            object_id=f"{clip.clip_id}-t1", noun="cat", frame_idx=(clip.start_frame,), frame_time_s=(clip.start_s,),
            rle=(self._mask(clip, clip.start_frame),),
        )  # fmt: skip
        return Sample.model_validate(
            {
                "sample_id": f"{clip.clip_id}-{kind}-{number}", "kind": kind,
                "qa_type": "basic" if kind == "qa" else "none", "split": clip.split, "clip_id": clip.clip_id,
                "source_id": clip.source_id, "video": clip.video, "video_sha256": clip.video_sha256,
                "license": clip.license, "start_s": clip.start_s, "end_s": clip.end_s, "visible_until_s": clip.end_s,
                "fps": clip.fps, "height": clip.height_px, "width": clip.width_px,
                "conversations": (
                    Turn(speaker="human", value=QUESTIONS[kind]), Turn(speaker="gpt", value="A red cat [sic].")
                ),
                "objects": (cat,),
                "provenance": Provenance(
                    engines=("refiner=by hand",), weights=(), prompt_hashes=(), revisions=("refiner=1",),
                    verdict="kept", wording="template",
                ),
            }
        )  # fmt: skip


class HandMadeLake:
    """A lake with the outputs of every clip of a source, ready to be published; `source` may be made once for many."""

    def __init__(self, by_hand: ByHand, source: Path, folder: Path) -> None:
        self.by_hand = by_hand
        self.source = source
        self.lake = Lake(folder)
        self.profile: Profile = load_profile("embedded")
        self.plan: Plan = plan_build(source, None, self.lake, self.profile, None, lambda line: None)
        self.chain = Chain(self.lake, by_hand.labels(), annotator_needs(self.profile))
        self.site = Site(
            videos_root=str(self.plan.videos_root), frames_dir=str(folder.parent / "frames"), identity=UNKNOWN
        )

    def publish(self, failed: Sequence[QuarantineEntry] = (), work: Sequence[AgentWork] = ()) -> BuildResult:
        """Commit what the lake holds."""
        command = BuildCommand(source=str(self.source), profile="embedded")
        return publish_build(self.plan, self.chain, failed, command, self.lake, self.profile, self.site, work)


class SmallBuilds:
    """Builds of painted clips by the real agents, in this process: no Prefect, no Ray, else as `flows.build` does it.

    `seen` are the clips that each agent was handed in the last build, as often as it was.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
        self.source, self.rows, self.lake = folder / "rows.jsonl", list(rows), Lake(folder / "lake")
        self.seen: dict[str, list[str]] = {}

    def write(self, rows: Sequence[Mapping[str, object]]) -> None:
        self.source.write_text("\n".join(map(json.dumps, rows)))

    def profile(self, **config: Mapping[str, object]) -> Profile:
        """The painted profile with some agents' settings changed."""
        whole = load_profile("painted").model_dump()
        for role, changes in config.items():
            whole[role]["config"] |= changes
        return Profile.model_validate(whole)

    def build(self, profile: Profile | None = None, fails: Mapping[str, Sequence[str]] | None = None) -> BuildResult:
        """Build what the source now holds; `fails` are clip ids, by agent, that end in an exception there."""
        profile = profile or self.profile()
        plan = plan_build(self.source, None, self.lake, profile, None, lambda line: None)
        labels = agent_labels(profile)
        frames, who = self.source.parent / "frames", identify(profile, labels)
        site = Site(videos_root=str(plan.videos_root), frames_dir=str(frames), identity=who)
        chain = Chain(self.lake, labels, annotator_needs(profile))
        self.seen = {}
        pools = cast("Pools", _PoolsHere(profile, site, fails or {}, self.seen))
        run = BuildRun(chain=chain, pools=pools, progress=BuildProgress(len(plan.clips), dict.fromkeys(ROLES, 1), ()))
        for role in ROLES:
            run_step(role, 0, plan.clips, run, lambda level, line: None)
        command = BuildCommand(source=str(self.source), profile="painted")
        failed = tuple(run.failed.values())
        return publish_build(plan, chain, failed, command, self.lake, profile, site, run.work)

    def clip_of(self, row: int) -> Clip:
        """The clip that a row of the source gives."""
        plan = plan_build(self.source, None, self.lake, self.profile(), None, lambda line: None)
        return plan.clips[row]


class _PoolsHere:
    def __init__(
        self, profile: Profile, site: Site, fails: Mapping[str, Sequence[str]], seen: dict[str, list[str]]
    ) -> None:
        self._profile, self._site, self._fails, self._seen = profile, site, fails, seen

    def get(self, role: Role) -> LocalPool[Any, Any]:
        agent = make_agent(role, self._profile, self._site)
        bad, seen, work = self._fails.get(role, ()), self._seen.setdefault(role, []), agent.process

        def process(jobs: Sequence[Any]) -> list[Any]:
            ids = [clip_id_of(job) for job in jobs]
            seen.extend(ids)
            if set(ids) & set(bad):
                raise RuntimeError(f"gone at {hex(id(jobs))}")
            return work(jobs)

        agent.process = process  # type: ignore[method-assign]
        return LocalPool(lambda: agent, batch_size=4)


@pytest.fixture(scope="module")
def small_builds(tmp_path_factory: pytest.TempPathFactory) -> SmallBuilds:
    """Three painted clips, not built yet."""

    fetch_weights("painted", say=print)
    folder = tmp_path_factory.mktemp("small")
    made = SmallBuilds(folder, write_clips(folder / "clips", 3, 7))
    made.write(made.rows)
    return made


@pytest.fixture
def by_hand() -> ByHand:
    """Makes records as agents would."""
    return ByHand()


@pytest.fixture
def two_videos(make_video: Any, tmp_path: Path) -> Path:
    """A folder of two captioned videos and one without a caption."""
    for name in ("a", "b"):
        is_b = name == "b"  # another scene, else they might be taken for copies
        video = make_video(f"source/{name}.mp4", options={"g": "10"}, num_frames=40 + 5 * is_b, cuts=(0,) * is_b)
        video.with_suffix(".json").write_text(
            f'{{"id": "row-{name}", "caption": "A cat and a dog by a tree.", "license": "CC0-1.0"}}'
        )
    make_video("source/silent.mp4")
    return tmp_path / "source"


@pytest.fixture
def lake_by_hand(by_hand: ByHand, two_videos: Path, tmp_path: Path) -> HandMadeLake:
    """A lake in which every clip of `two_videos` went through all agents."""
    made = HandMadeLake(by_hand, two_videos, tmp_path / "lake")
    for clip in made.plan.clips:
        by_hand.fill(made.chain, clip)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of a test file's own, and a cache of its own that holds the weights of the machine."""
    from prefect.testing.utilities import prefect_test_harness  # takes seconds, which most tests here do without

    fetch_weights("painted", say=print)
    cache = tmp_path_factory.mktemp("cache")
    (cache / "files").symlink_to(settings().cache_dir / "files")
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["VIDEOREFER_CACHE"] = str(cache)
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    with prefect_test_harness(server_startup_timeout=120):
        yield
    os.environ.clear()
    os.environ.update(before)


CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class TinyTraining:
    """A saved VideoRefer of a few thousand weights in `model`, its tokenizer beside it, and trainings of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder / "model"

    def profile(
        self, num_steps: int = 4, workers: int = 1, base: str | None = None, extra: str = "", **settings: object
    ) -> str:
        """The path of a new profile; `base` and `extra` are TOML."""
        chosen = {"learning_rate": 1e-3, "global_batch_size": 2, "num_steps": num_steps} | settings
        lines = [f"{name} = {value}" for name, value in chosen.items()]
        path = self.folder / f"tiny-{time.monotonic_ns()}.toml"
        path.write_text(
            'name = "tiny"\ndescription = "For a test."\n[base]\n'
            + (base or f'kind = "model"\npath = "{self.model}"')
            + '\n[settings]\nparts = ["connector", "object_encoder", "language_model"]\nprecision = "fp32"\n'
            "log_every_steps = 1\n"
            + "\n".join(lines)
            + f"\n[data]\ndecode_cache_mib = 0\n{extra}\n[workers]\nnum = {workers}\n"
        )
        return str(path)

    def steps(self, out: Path) -> list[Any]:
        """The rows of the metrics file, but for one that is being written."""
        from model.training.metrics import StepMetrics

        whole = (out / "metrics.jsonl").read_text().rpartition("\n")[0]
        return [StepMetrics.model_validate_json(line) for line in whole.splitlines()]

    def when_logged(self, out: Path, step: int, act: Callable[[], None]) -> threading.Thread:
        """Do something, in a thread, once a step is in the metrics."""

        def wait() -> None:
            while not (out / "metrics.jsonl").exists() or not any(row.step >= step for row in self.steps(out)):
                time.sleep(0.02)
            act()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyTraining:
    """Made of random weights and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

    from model.configuration import VideoReferConfig
    from model.modeling import VideoReferForConditionalGeneration
    from model.processing import processor_for

    made = TinyTraining(tmp_path_factory.mktemp("tiny"))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=CHAT
    )
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.save_pretrained(made.folder / "tokenizer")
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text = {"model_type": "qwen2", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 16}
    config = VideoReferConfig(
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        text_config=text | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        num_frames=2,
        connector_depth=1,
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    processor = processor_for(config, PreTrainedTokenizerFast.from_pretrained(made.folder / "tokenizer"), images, 512)
    torch.manual_seed(0)
    VideoReferForConditionalGeneration(config).save_pretrained(made.model)
    processor.save_pretrained(made.model)
    return made
