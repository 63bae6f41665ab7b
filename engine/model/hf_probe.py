"""Ask a transformers model how it calls attention, before any of its weights is read.

The model is built without memory (torch's ``meta`` device) and run once. What its layers hand to
the attention interface, and which masks they ask for, says whether our pages can serve it: every
layer must attend exactly once, causally, over all earlier tokens or over a sliding window of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from agentrt.errors import ModelError

__all__ = ["STEP", "AttentionCall", "Probe", "import_transformers", "probe", "skeleton"]

STEP = "agentrt_step"
"""The keyword by which a step reaches the attention function, through all of a model's modules."""
_NAME = "agentrt-probe"
_TOKENS = 8
_ROWS = 3
_Check = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]

_HARMLESS = frozenset(
    {
        "dropout",
        "scaling",
        "sliding_window",
        "is_causal",
        "position_ids",
        "position_embeddings",
        "use_cache",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "deterministic",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "token_type_ids",
        "logits_to_keep",
        "labels",
        "max_length_q",
        "max_length_k",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
    }
)
"""Keywords that change nothing of what causal attention computes, or that are looked at."""
_WHAT = {
    "softcap": "caps its attention scores (softcap)",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a position bias to its attention scores",
}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How one layer attends. Sizes are counts; ``scaling`` multiplies the scores."""

    layer: int
    heads: int
    kv_heads: int
    query_dim: int
    value_dim: int
    scaling: float
    window: int | None


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found: the calls in the order of the layers, and the size of the vocabulary."""

    calls: tuple[AttentionCall, ...]
    vocab_size: int


class _Refusal(Exception):
    """Why a model cannot run on pages."""


@dataclass(slots=True)
class _Recorder:
    """Stands in for a step while a model is probed."""

    calls: list[AttentionCall] = field(default_factory=list)

    def record(
        self,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: object,
        words: Mapping[str, Any],
    ) -> None:
        for word, value in words.items():
            if word not in _HARMLESS and value is not None:
                raise _Refusal(_WHAT.get(word, f"hands {word!r} to attention"))
        if getattr(module, "is_causal", True) is False or words.get("is_causal") is False:
            raise _Refusal("attends to later tokens too")
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise _Refusal("has attention layers without a number")
        window = words.get("sliding_window")
        _check_mask(mask, window)
        scaling = words.get("scaling")
        self.calls.append(
            AttentionCall(
                layer=layer,
                heads=q.shape[1],
                kv_heads=k.shape[1],
                query_dim=q.shape[3],
                value_dim=v.shape[3],
                scaling=q.shape[3] ** -0.5 if scaling is None else float(scaling),
                window=window,
            )
        )


def _check_mask(mask: object, window: int | None) -> None:
    """Compare the mask that a layer was given with plain causal attention over ``window``."""
    if mask is None:
        return  # nothing is hidden beyond what the module's own causality hides
    visible: _Check | None = getattr(mask, "agentrt_visible", None)
    if visible is None:
        raise _Refusal("makes an attention mask of its own")
    far = 1000 if window is None else window
    query = torch.tensor([far + 7, far + 7, far + 7, far + 7, far + 7, far, 3])
    key = torch.tensor([0, 7, 8, far + 7, far + 8, 0, 3])
    expected = key <= query
    if window is not None:
        expected &= key > query - window
    found = torch.stack([visible(0, 0, q, k) for q, k in zip(query, key, strict=True)])
    if found.device.type == "meta" or not torch.equal(found.bool(), expected):
        raise _Refusal("uses another mask than causal attention or a sliding window")


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **words: Any,
) -> tuple[torch.Tensor, None]:
    """Record a call and return something of the right shape."""
    recorder = words.pop(STEP, None)
    if recorder is None:
        raise _Refusal("does not hand its keyword arguments on to its attention")
    recorder.record(module, query, key, value, attention_mask, words)
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _mask(*, q_length: int, kv_length: int, mask_function: _Check, **_: Any) -> torch.Tensor:
    """Return an empty mask that knows which tokens it would let see which."""
    mask = torch.empty(1, 1, q_length, kv_length, device="meta")
    mask.agentrt_visible = mask_function  # type: ignore[attr-defined]
    return mask


def _experts(module: torch.nn.Module, states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Stand in for experts, whose number of tokens is not known without weights."""
    return torch.empty_like(states)


def import_transformers() -> Any:
    """Return the transformers package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"This architecture is computed by transformers, which cannot be imported: {error}.",
            remedy="Install it: pip install 'agentrt[hf]'.",
        ) from error
    return transformers


def _register() -> None:
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _mask)
    experts = _experts_registry()
    if experts is not None:
        experts.register(_NAME, _experts)


def _experts_registry() -> Any:
    """Return transformers' registry of expert implementations; None in versions without one."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:
        return None
    return ALL_EXPERTS_FUNCTIONS


def skeleton(config: Any, attention: str, experts: str | None = None) -> Any:
    """Return the model of a transformers config, in eval mode and without memory for weights."""
    own = copy.deepcopy(config)
    for part in (own, own.get_text_config()):
        if experts is not None:
            part._experts_implementation = experts
    with torch.device("meta"):
        model = import_transformers().AutoModelForCausalLM.from_config(
            own, attn_implementation=attention, trust_remote_code=False
        )
    return model.eval()


def probe(config: Any, file: object) -> Probe:
    """Find out how the model of a transformers ``config`` attends; ``file`` is named in errors.

    Raises:
        ModelError: it cannot run on our pages, and why.
    """
    _register()
    recorder = _Recorder()
    try:
        logits = _run(skeleton(config, _NAME, _NAME), recorder)
        calls = _ordered(recorder.calls, config.get_text_config().num_hidden_layers)
        if logits.dim() != 3 or logits.shape[1] != _ROWS:
            raise _Refusal("cannot return the logits of chosen tokens only")
    except _Refusal as refusal:
        raise _unsupported(config, file, str(refusal)) from None
    except Exception as error:  # whatever a model's own code raises
        why = f"cannot be run to see how it attends ({type(error).__name__}: {error})"
        raise _unsupported(config, file, why) from error
    return Probe(calls, logits.shape[2])


def _run(model: Any, recorder: _Recorder) -> torch.Tensor:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.RNNBase):
            raise _Refusal(f"mixes tokens outside attention ({name or type(module).__name__})")
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=ids,
            position_ids=ids,
            attention_mask=torch.ones_like(ids),  # else the mask depends on the positions' values
            use_cache=False,
            logits_to_keep=torch.zeros(_ROWS, dtype=torch.int64, device="meta"),
            **{STEP: recorder},
        ).logits
    return logits


def _ordered(calls: list[AttentionCall], layers: int) -> tuple[AttentionCall, ...]:
    """Return the calls by layer; each layer must attend once, and all with heads alike."""
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise _Refusal(
            f"calls the attention interface {len(calls)} times for {layers} layers: some of its "
            "layers do not attend, or not through the interface"
        )
    shapes = {(c.heads, c.kv_heads, c.query_dim, c.value_dim) for c in calls}
    if len(shapes) != 1:
        raise _Refusal("has layers with different numbers or sizes of heads")
    return tuple(sorted(calls, key=lambda call: call.layer))


def _unsupported(config: Any, file: object, reason: str) -> ModelError:
    return ModelError(
        f"{file}: a model of type {config.model_type!r} cannot run on paged attention: it "
        f"{reason}.",
        remedy="Use a decoder whose layers all attend causally through transformers' attention "
        "interface, such as Llama, Qwen3, Qwen3-MoE, Mistral, Gemma, Phi3 or GPT-NeoX.",
    )
