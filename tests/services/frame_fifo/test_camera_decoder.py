"""Which frames a camera's decoder gives, and what it does with damaged packets."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from services.frame_fifo.camera_decoder import NUM_IN_ORDER, CameraDecoder
from services.messages.video import VideoPacket
from services.video.sampled_frame import SampledFrame
from tests.services.h264 import camera_packets, encoded, mjpeg_bomb, picture

SIZE = 48


def decoder(fps: float = 5.0) -> CameraDecoder:
    return CameraDecoder(fps, SIZE, 4096 * 2304)


def feed(d: CameraDecoder, packets: list[VideoPacket]) -> tuple[list[SampledFrame], list[str]]:
    """All frames, and why packets were skipped."""
    decoded = [d.decode(p) for p in packets]
    return [f for x in decoded for f in x.frames], [x.skipped for x in decoded if x.skipped]


def test_frames_tell_when_they_were_captured_and_show_the_picture() -> None:
    packets = camera_packets(encoded(30))
    frames, skipped = feed(decoder(), packets)
    assert not skipped
    assert [f.captured_s for f in frames] == [packets[i].captured_s for i in range(0, 30, 3)]
    assert frames[1].frame_id == f"{round(packets[3].captured_s * 1000)}-3"
    pixels = np.frombuffer(frames[4].pixels, np.uint8).reshape(SIZE, SIZE, 3)
    wanted = np.asarray(Image.fromarray(picture(12)).resize((SIZE, SIZE), Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - wanted).mean() < 12
    jpeg = Image.open(io.BytesIO(frames[4].jpeg()))
    assert (jpeg.format, jpeg.size) == ("JPEG", (160, 120))


def test_a_large_picture_is_shown_small() -> None:
    frames, _ = feed(decoder(), camera_packets(encoded(1, size=(1280, 720))))
    assert Image.open(io.BytesIO(frames[0].jpeg())).size == (480, 270)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_each_codec_is_read(codec: str, name: str) -> None:
    frames, skipped = feed(decoder(), camera_packets(encoded(16, codec=codec), codec=name))
    assert len(frames) >= 5
    assert not skipped


def test_reordered_frames_keep_their_own_capture_times() -> None:
    packets = camera_packets(encoded(60, b_frames=2))
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)
    frames, skipped = feed(decoder(fps=15), packets)
    assert not skipped
    times = [f.captured_s for f in frames]
    assert times == sorted(times)
    seqs = {round(p.captured_s * 1000): p.seq for p in packets}
    assert all(
        f.frame_id == f"{round(f.captured_s * 1000)}-{seqs[round(f.captured_s * 1000)]}" for f in frames
    )
    assert len(frames) >= 57  # the codec holds the last ones back


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_stream_that_allows_b_frames_and_has_none_is_soon_shown_without_delay(
    codec: str, name: str
) -> None:
    packets = camera_packets(encoded(120, codec=codec, b_frames=2, use_b_frames=False), codec=name)
    assert [p.pts for p in packets] == list(range(120))
    d = decoder(fps=15)
    delays: list[int] = []
    times: list[float] = []
    for packet in packets:
        for frame in d.decode(packet).frames:
            delays.append(round((packet.captured_s - frame.captured_s) * 15))
            times.append(frame.captured_s)
    assert times == [p.captured_s for p in packets]  # none is lost at the change, and none comes twice
    assert delays[0] == 2
    first_keyframe = 15 * (NUM_IN_ORDER // 15)
    assert set(delays[first_keyframe:]) == {0}


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_stream_that_begins_to_reorder_is_shown_in_order_again(codec: str, name: str) -> None:
    plain = camera_packets(encoded(90, codec=codec, b_frames=2, use_b_frames=False), codec=name)
    later = camera_packets(
        encoded(45, codec=codec, b_frames=2), codec=name, start_s=plain[0].captured_s + 6, first_seq=90
    )
    later = [replace(p, pts=p.pts + 90) for p in later]
    frames, skipped = feed(decoder(fps=15), plain + later)
    assert skipped == []
    times = [f.captured_s for f in frames]
    assert times == sorted(times)
    assert times[:90] == [p.captured_s for p in plain]
    second = {p.captured_s for p in later[15:]}
    assert len(second & set(times)) >= len(second) - 4  # held back, or decodable only after the GOP before


def test_a_new_decoder_waits_for_a_keyframe() -> None:
    packets = camera_packets(encoded(30))
    d = decoder()
    frames, skipped = feed(d, packets[5:])
    assert skipped == ["no_keyframe"] * 10
    assert frames[0].captured_s == packets[15].captured_s


def test_a_lost_packet_costs_the_rest_of_its_gop() -> None:
    packets = camera_packets(encoded(30))
    frames, skipped = feed(decoder(15), packets[:7] + packets[8:])
    assert skipped == ["lost_packet"] + ["no_keyframe"] * 6
    assert len(frames) == 7 + 15


def test_a_repeated_packet_is_ignored() -> None:
    packets = camera_packets(encoded(10))
    frames, skipped = feed(decoder(15), [*packets[:4], packets[3], *packets[4:]])
    assert skipped == ["repeated"]
    assert len(frames) == 10


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("num_lost", [0, 3])
def test_a_gop_that_is_sent_again_gives_no_frame_twice_and_the_lost_ones(
    num_lost: int, b_frames: int
) -> None:
    """As a publisher does when its topic was made again: one packet, then all since the keyframe, then the next."""
    packets = camera_packets(encoded(60, gop=40, b_frames=b_frames))
    d = decoder(15)
    before, _ = feed(d, packets[: 25 - num_lost])
    codec = d._context  # pyright: ignore[reportPrivateUsage]
    again, skipped = feed(d, [packets[25 - 1], *packets[:25]])
    if num_lost:
        assert skipped == ["lost_packet"]
    else:
        assert skipped == ["repeated"] * 26
        assert d._context is codec  # pyright: ignore[reportPrivateUsage]
    after, skipped = feed(d, packets[25:])
    assert skipped == []
    times = [frame.captured_s for frame in before + again + after]
    uninterrupted, _ = feed(decoder(15), packets)
    assert times == [frame.captured_s for frame in uninterrupted]


@pytest.mark.parametrize("at", [0, 7, 15])
@pytest.mark.parametrize("damage", ["cut", "noise", "noise after the header", "flipped"])
def test_a_damaged_packet_is_told_and_the_next_keyframe_heals(at: int, damage: str) -> None:
    packets = camera_packets(encoded(45))
    data = packets[at].data
    noise = np.random.default_rng(1).integers(0, 255, len(data), dtype=np.uint8).tobytes()
    bad = {
        "cut": data[: len(data) // 2],
        "noise": noise,
        "noise after the header": data[:12] + noise[12:],
        "flipped": data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x55]) + data[len(data) // 2 + 1 :],
    }[damage]
    packets[at] = replace(packets[at], data=bad)
    frames, skipped = feed(decoder(15), packets)
    good = {packets[i].captured_s for i in range(30, 45)}
    assert good <= {f.captured_s for f in frames}
    if damage != "flipped":  # a flipped bit may still be a picture
        assert "damaged" in skipped
        assert packets[at].captured_s not in {f.captured_s for f in frames}


def test_another_codec_resolution_or_publisher_begins_at_a_keyframe() -> None:
    d = decoder()
    first = camera_packets(encoded(20))
    second = camera_packets(encoded(15, size=(96, 96)), start_s=1_800_000_010)
    third = camera_packets(encoded(15, codec="mjpeg"), codec="mjpeg", start_s=1_800_000_020)
    frames, skipped = feed(d, first + second + third)
    assert not skipped
    assert len(frames) == 7 + 5 + 5
    assert {Image.open(io.BytesIO(f.jpeg())).size for f in frames} == {(160, 120), (96, 96)}


def test_a_new_resolution_within_one_stream_goes_on() -> None:
    first = camera_packets(encoded(15))
    second = camera_packets(encoded(15, size=(96, 96)), start_s=1_800_000_001, first_seq=15)
    second = [replace(p, pts=p.pts + 15) for p in second]
    frames, skipped = feed(decoder(), first + second)
    assert not skipped
    assert len(frames) == 10


def test_a_huge_picture_is_refused_and_costs_no_memory() -> None:
    bomb = camera_packets(encoded(1, codec="mjpeg"), codec="mjpeg")[0]
    d = decoder()
    _, skipped = feed(d, [replace(bomb, data=mjpeg_bomb())])
    assert skipped == ["too_large"]
    assert d.needs_keyframe


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_a_picture_above_the_cap_is_named_with_its_size_and_the_cap(codec: str, name: str) -> None:
    unit, small = (
        camera_packets(encoded(1, codec=codec, size=size), codec=name)[0] for size in ((400, 300), (160, 120))
    )
    d = CameraDecoder(5.0, SIZE, 400 * 300 - 1)
    decoded = d.decode(unit)
    assert decoded.skipped == "too_large"
    got = "picture: too large: got 400x300 (120000 pixels), wanted at most 119999 pixels (STREAMCHAT_MAX_PIXELS)"
    assert decoded.problem == got
    assert d.decode(replace(small, seq=1)).frames  # a camera that is set to a smaller size appears


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_a_picture_of_exactly_the_cap_is_decoded_although_encoders_round_up(codec: str, name: str) -> None:
    unit = camera_packets(encoded(1, codec=codec, size=(1920, 1080)), codec=name)[0]
    assert CameraDecoder(5.0, SIZE, 1920 * 1080).decode(unit).frames


def test_catching_up_decodes_without_giving_frames() -> None:
    packets = camera_packets(encoded(20))
    d = decoder(15)
    assert not any(d.decode(p, sample=False).frames for p in packets[:10])
    assert len(feed(d, packets[10:])[0]) == 10
