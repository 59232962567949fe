"""The hooks of the probe, which count while a model runs forward.

A pass counts if the model is in training mode with gradients enabled when its forward begins, not
what activation checkpointing runs again in the backward pass, nor a reference model.

A hook never waits for the device and never raises: after the first failure nothing is counted any
more, with one warning. Between the products of a model Python runs from cold caches: the hook of a
router only keeps its choice, the end of the pass finds the tokens, and the step counts.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from microscope_tui.probe.counter import NORMS, WAITING_BYTES, WEIGHTS, Call, Calls, Counted, Tracer
from microscope_tui.probe.losses import StepLosses
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site, argument_names

_logger = logging.getLogger(__name__)
MOST_AHEAD = 3
"""How many tokens ahead a layer for multi-token prediction looks at most."""
COMPILED_STAGE = (
    "a stage of a pipeline that is compiled as a whole does not show which of its passes train: "
    "compile its layers instead (layer.compile() for each)"
)

_STAGE = "torch.distributed.pipelining.stage"


def _no_hook() -> Any:
    return lambda *args, **kwargs: None


class _Hook:
    """A hook that belongs to one model: a copy or a pickle of the model does not have it."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce__(self) -> Any:  # for copy.deepcopy too
        return _no_hook, ()


class _Seen(NamedTuple):
    own_T: Tensor | None
    """Places of its tokens in the batch, where the site knows them."""
    call: Call


class _Watched:
    """A router in a pass, with nothing that compiled code would depend on and layers differ in:
    layers of one class then share what is compiled, as they do without the probe."""

    def __init__(self, site: Site, place: int) -> None:
        self.site, self.place = site, place
        self.seen: list[_Seen] = []
        self.scored: Any = None
        """Logits, until the router itself is seen."""


class ForwardHooks:
    """Watches the routers of one model between two logged steps."""

    def __init__(
        self, modules: list[nn.Module], sites: list[Site], mode: str, saliency: bool, ranks: Ranks
    ) -> None:
        """``modules``: the model, or the chunks of it on this rank, called one after the other."""
        self.sites, self.problem = sites, ""
        self.on = False
        """Whether the current step is counted."""
        self.passes = 0
        """Forward passes of the step that count."""
        self.spoiled = False
        """A pass of the step raised after a part of it was counted."""
        self.losses: StepLosses | None = None
        self.tracer: Tracer | None = None
        self.asked: bool | None = None
        """The argument ``output_router_logits`` of the latest pass, if it had one."""
        self.returned: bool | None = None
        """Whether its output had an auxiliary loss; ``None`` for an output without the field."""
        self.outside = 0
        """Calls of routers with gradients outside a pass of the whole model."""
        self.calls = Calls()
        self.modules = modules
        self.model = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        self.padded = set[int]()
        """Routers whose padding was left out."""
        self.sees_part = False
        """Routers saw a part of the sequences; other tensor-parallel ranks saw the rest."""
        self.trains = mode == "train"
        self._saliency = saliency
        self._ranks = ranks
        self.mask: Tensor | None = None
        """See ``Probe.mask``."""
        self._batch: Batch | None = None
        self._compiled = False
        self._is_compiled_stage = False
        self._may_be_stage = dist.is_available() and dist.is_initialized()
        self._inside = 0
        self._watched = [_Watched(site, place) for place, site in enumerate(sites)]
        self._seen_bytes = 0
        self._counted: dict[int, tuple[Counted, tuple[Any, ...]]] = {}
        self._handles: list[Any] = []
        self._install()

    def reset(self, on: bool) -> None:
        """Forget the step so far, also one that was cut short; count the next one if ``on``."""
        self.on, self.passes, self.outside = on, 0, 0
        self._inside, self._batch = 0, None  # also after a pass that Ctrl-C ended
        self.spoiled = False
        self.mask = None
        self._forget()
        self._seen_bytes = 0
        self.calls.clear()
        if self.losses is not None:
            self.losses.reset()

    def _forget(self) -> None:
        for one in self._watched:
            one.seen, one.scored = [], None

    def detach(self) -> None:
        """Remove all hooks; the model is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def fail(self, error: Exception) -> None:
        """Warn once; from now on nothing is counted."""
        if not self.problem:
            self.problem = f"{type(error).__name__}: {error}"
            _logger.warning(
                "the probe stops counting on this process, training continues: %s", self.problem
            )
        self._batch = None

    def _install(self) -> None:
        if self._may_be_stage:
            torch.compiler.assume_constant_result(_in_stage)  # type: ignore[no-untyped-call]
        for model in self.modules:
            enter = partial(self._enter, argument_names(model))
            self.hook(model.register_forward_pre_hook, enter, with_kwargs=True)
            self.hook(model.register_forward_hook, self._leave, always_call=True)
        for one in self._watched:
            site = one.site
            if not site.here:
                continue
            for module, pre_hook in site.pre_hooks:
                self.hook(module.register_forward_pre_hook, pre_hook, with_kwargs=True)
            if site.before:
                see = self._for(one, self._see_arguments)
                self.hook(site.module.register_forward_pre_hook, see, with_kwargs=True)
            else:
                self._after(site.module, one, self._see)
            scores = site.scores
            if scores is not None and scores.index is not None:  # it runs before the one above
                take = partial(self._take_output, scores.index, one)
                self.hook(scores.module.register_forward_hook, take, prepend=True)
            if self._saliency and site.experts is not None:
                self._after(site.experts, one, self._measure_norms)

    def _after(self, module: nn.Module, one: _Watched, call: Callable[..., None]) -> None:
        self.hook(module.register_forward_hook, self._for(one, call), prepend=True)

    def hook(self, register: Any, call: Callable[..., None], **options: Any) -> None:
        """Register a hook that ``detach`` removes and that copies of the model do not have."""
        self._handles.append(register(_Hook(call), **options))

    def _for(self, one: _Watched, call: Callable[..., None]) -> Callable[..., None]:
        def hook(*args: Any) -> None:
            if self._batch is None:
                # Compiled code does not show whether a backward pass runs a layer again.
                inside = torch.compiler.is_compiling() or self._inside or _in_backward()
                self.outside += self.on and torch.is_grad_enabled() and not inside
                return
            self.attempt(call, one, *args)

        return hook

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """What ``call`` returns; ``None`` if it fails."""
        try:
            with torch.no_grad():
                return call(*args)
        except Exception as error:  # any failure: the training matters more
            self.fail(error)

    def _enter(
        self, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._inside += 1
        if self._inside > 1 or not self.on or self.problem or not self._pass_counts(module):
            return
        if self._may_be_stage and torch.compiler.is_compiling() and _in_stage():
            self._is_compiled_stage = True
        trains, number, of = _micro_batch() or (self.trains, 0, 1)
        if trains != self.trains:
            return
        given = _named(names, args, kwargs)
        self.asked = given.get("output_router_logits")
        mask = given.get("attention_mask")
        if mask is None and self.mask is not None:
            mask = self.mask.tensor_split(of)[number]
        if isinstance(mask, Tensor) and mask.dim() == 2:  # it also shows how many tokens there are
            given = {"x": mask, **given, "attention_mask": mask}
        self._batch = Batch(given)
        self.passes += 1

    def _pass_counts(self, module: nn.Module) -> bool:
        if module.training != self.trains:
            return False
        if not self.trains:
            return True
        return torch.is_grad_enabled() and (not _in_backward() or _reentrant_checkpoint())

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside = max(0, self._inside - 1)
        if self._inside == 0 and self._batch is not None:
            batch = self._batch
            compiling = torch.compiler.is_compiling()
            if not compiling and output is None and sys.exc_info()[0] is not None:
                self._discard(batch)
                return
            self.attempt(self._place)
            self._batch = None
            self._forget()
            if self._compiled:  # a replayed graph writes its tensors again
                self.attempt(self.calls.count)
            if not compiling and hasattr(output, "aux_loss"):
                self.returned = output.aux_loss is not None
            self._check_rows(batch)
            if self.losses is not None:
                self.losses.add(output, batch.divides_loss)

    def _discard(self, batch: Batch) -> None:
        """Forget a pass that raised: out of memory, its batch may come again in parts."""
        self._batch = None
        self._forget()
        self.passes -= 1
        self.spoiled = self.spoiled or batch.is_counted

    def end(self) -> None:
        """Count all calls of the step.

        ``ValueError``: it is unknown which of its passes count.
        """
        if self._is_compiled_stage:
            raise ValueError(COMPILED_STAGE)
        self.count()

    def count(self) -> None:
        """Count the calls that were only collected so far; their tensors are released."""
        if self._batch is not None:
            self._batch.is_counted = True
        self._place()
        self._seen_bytes = 0
        self.calls.count()

    def _place(self) -> None:
        for one in self._watched:
            seen, one.seen = one.seen, []
            for each in seen:
                self.calls.add(self._placed(one, each))

    def _check_rows(self, batch: Batch) -> None:
        """Fail if a router saw only some of the tokens, of a sequence that is split over ranks."""
        for place, rows in batch.seen.items():
            site = self.sites[place]
            of_batch = batch.rows(site.stack)
            if not of_batch or rows % of_batch == 0:
                continue
            if rows * self._ranks.tensor_size % of_batch == 0:
                self.sees_part = True
            elif self._ranks.tensor_size > 1 or batch.real(site.stack) is not None:
                what = f"{site.name} ({site.path}) saw {rows % of_batch} of {of_batch} tokens"
                self.fail(ValueError(f"{what} of the batch: it is not known which these are"))

    def _take_output(self, index: int, one: _Watched, module: Any, args: Any, output: Any) -> None:
        if self._batch is not None:
            one.scored = output[index] if isinstance(output, tuple | list) else output

    def _see_arguments(
        self, one: _Watched, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if kwargs:
            names = argument_names(module)
            args = (*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
        self._see(one, module, args, None)

    def _see(self, one: _Watched, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site = one.site
        choice = site.read(module, args, output)
        logits = one.scored
        one.scored = None
        if choice.logits_TE is not None:
            logits = choice.logits_TE
        call = Call.of(site, choice, logits)
        if not (rows := len(call.ids_TK)):
            return
        own_T = None
        if site.own_rows is not None and (own_N := site.own_rows()) is not None:
            # Without waiting for the device: the number of rows is known from the call.
            own_T = torch.nonzero_static(own_N.reshape(-1), size=rows)[:, 0]
        seen = _Seen(own_T, call)
        if self.tracer is None and not self._saliency:
            one.seen.append(seen)
            self._limit(call.bytes)
            return
        assert self._batch is not None
        self._batch.is_counted = True
        self.calls.add(self._placed(one, seen))
        (counted,) = self.calls.count()
        weights_TK = choice.weights_TK
        if self.tracer is not None:
            self.tracer.add(counted, weights_TK)
        if self._saliency and weights_TK is not None:
            counted.tally.add_values(WEIGHTS, weights_TK, counted.slots_LTK)
            if site.experts is not None:  # otherwise these activations stay
                self._counted[one.place] = counted, args

    def _limit(self, more: int) -> None:
        """Count what waits if it is too much; of compiled code, all at the end of the pass."""
        if torch.compiler.is_compiling():
            self._compiled = True  # and not read: another value would be compiled again
            return
        self._seen_bytes += more
        if self._seen_bytes > WAITING_BYTES:
            self.count()

    def _placed(self, one: _Watched, seen: _Seen) -> Call:
        """With its pass through the router, and what is known of its tokens."""
        call, batch, site, place = seen.call, self._batch, one.site, one.place
        assert batch is not None
        rows = len(call.ids_TK)
        number, at = self._rows_of(batch, one, seen, rows)
        real_T, loss_T = call.real_T, None
        if at is not None:
            real_T = _of_rows(batch.real(site.stack), at)
            loss_T = _of_rows(batch.loss(site.stack), at)
        if real_T is not None:
            if len(real_T) != rows:
                raise ValueError(f"a mask of {len(real_T)} tokens for {rows}: see Probe.mask")
            self.padded.add(place)
        return call.placed((place, number), real_T, loss_T)

    def _rows_of(self, batch: Batch, one: _Watched, seen: _Seen, rows: int) -> tuple[int, Any]:
        """Which pass through the site this is, and its rows of the batch; ``None`` if unknown."""
        place, site = one.place, one.site
        if seen.call.real_T is not None or not site.sees_text:
            return 0, None
        of_batch = batch.rows(site.stack)
        if seen.own_T is not None:
            return 0, seen.own_T
        before, batch.seen[place] = batch.seen[place], batch.seen[place] + rows
        if of_batch is None:
            return before // rows, None
        ahead_T = batch.places_ahead(rows) if site.stack == "mtp" else None
        if ahead_T is not None and before % of_batch == 0:
            batch.seen[place] = before + of_batch
            return before // of_batch, ahead_T
        if before % of_batch + rows > of_batch:
            if batch.real(site.stack) is None and self._ranks.tensor_size == 1:
                return before // rows, None  # all are real, as where the model adds tokens
            raise ValueError(
                f"{site.name} ({site.path}) is called with {rows} rows and the batch has "
                f"{of_batch} tokens: it is not known which of them these are"
            )
        if rows < of_batch and rows * self._ranks.tensor_size == of_batch:
            return before // rows, batch.share(site.stack, self._ranks)
        start = before % of_batch  # a layer may take its tokens in pieces
        return before // of_batch, slice(start, start + rows)

    def _measure_norms(self, one: _Watched, module: nn.Module, args: Any, output: Any) -> None:
        """Of what every chosen expert returns, before it is weighted."""
        found = self._counted.pop(one.place, None)
        if found is None:
            return
        counted, args = found
        hidden_TD, ids_TK, weights_TK = args[:3]
        ones_T1 = torch.ones_like(weights_TK[:, :1])
        try:
            norms = [
                module.forward(hidden_TD, ids_TK[:, k : k + 1], ones_T1).float().norm(dim=-1)
                for k in range(ids_TK.shape[-1])
            ]
        except Exception as error:  # some do not take a single choice: only the norms are lost
            one.site.experts = None
            _logger.warning("no mean_output_norm of %s: %r", one.site.name, error)
            return
        counted.tally.add_values(NORMS, torch.stack(norms, dim=-1), counted.slots_LTK)


def _of_rows(mask_N: Tensor | None, at: Any) -> Tensor | None:
    return None if mask_N is None else mask_N[at]


def _named(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    given = dict(zip(names, args, strict=False)) | kwargs
    for value in [*given.values()]:
        if isinstance(value, Mapping) and "input_ids" in value:  # the whole batch
            given = {**value, **given}
    return given


def _in_stage() -> bool:
    """Whether a stage of a pipeline of torch runs this; compiled code keeps the first answer."""
    home = sys.modules.get(_STAGE)
    frames = traceback.walk_stack(sys._getframe())
    return home is not None and any(f.f_code.co_filename == home.__file__ for f, _ in frames)


def _micro_batch() -> tuple[bool | None, int, int] | None:
    """In a pipeline of torch, which evaluates in training mode with gradients: whether it trains
    (``None``: it learns shapes, from any numbers), number of the micro-batch, and how many."""
    if _STAGE not in sys.modules or torch.compiler.is_compiling():
        return None
    for frame, _ in traceback.walk_stack(sys._getframe()):
        if frame.f_code.co_filename != sys.modules[_STAGE].__file__:
            continue
        if frame.f_code.co_name == "forward_one_chunk":
            stage = frame.f_locals["self"]
            return stage.has_backward, frame.f_locals["fwd_chunk_id"], stage.chunks
        if frame.f_code.co_name == "_forward_metadata_inference":
            return None, 0, 1
    return None


def _in_backward() -> bool:
    if torch.compiler.is_compiling():
        return False  # only the forward is compiled, and the next call would break its graph
    task = getattr(torch._C, "_current_graph_task_id", None)  # private: may disappear
    return task is not None and task() != -1


def _reentrant_checkpoint() -> bool:
    """Of the whole model, which it runs without gradients first."""
    codes = (frame.f_code for frame, _ in traceback.walk_stack(sys._getframe()))
    return any(c.co_name == "backward" and c.co_filename.endswith("checkpoint.py") for c in codes)


class Batch:
    """The tokens of one forward pass of the whole model."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.seen: defaultdict[int, int] = defaultdict(int)
        """Rows of each router so far."""
        self.is_counted = False
        """Some of its calls are in the sums of the step."""
        self.divides_loss = given.get("num_items_in_batch") is not None
        """The model divides its loss by the tokens of the whole step, not of this batch."""
        self._real: dict[str, Tensor | None] = {}
        self._loss: Tensor | None = None

    def rows(self, stack: str) -> int | None:
        """Tokens that the stack (encoder or decoder) gets, padding included; ``None`` if
        unknown.
        """
        shape = self._shape(stack)
        return None if shape is None else shape[0] * shape[1]

    def share(self, stack: str, ranks: Ranks) -> Tensor:
        """Places of the tokens that this tensor-parallel rank has of every sequence."""
        shape = self._shape(stack)
        assert shape is not None
        places_BS = torch.arange(shape[0] * shape[1]).view(shape)
        return places_BS.chunk(ranks.tensor_size, dim=1)[ranks.tensor_rank].reshape(-1)

    def places_ahead(self, rows: int) -> Tensor | None:
        """Where the tokens of a layer for multi-token prediction are, if it has only ``rows``.

        Such a layer takes each token together with what the model knows of one up to ``MOST_AHEAD``
        before it, so the first tokens of every sequence are not among its rows. ``None`` for other
        numbers of rows.
        """
        B, S = self._shape("mtp") or (1, 0)
        length, rest = divmod(rows, B)
        if rest or not max(1, S - MOST_AHEAD) <= length < S:
            return None
        return torch.arange(B * S).view(B, S)[:, S - length :].reshape(-1)

    def real(self, stack: str) -> Tensor | None:
        """Bool ``[B·S]``, false for padding; ``None`` where every token is real."""
        if stack not in self._real:
            real_BS = self._decoder_mask() if stack == "dec" else self._mask()
            self._real[stack] = None if real_BS is None else real_BS.reshape(-1)
        return self._real[stack]

    def loss(self, stack: str) -> Tensor | None:
        """Bool ``[B·S]``, true where labels show a loss; ``None`` where that is unknown."""
        if stack not in ("", "dec"):
            return None
        labels, shifted = self._given.get("labels"), self._given.get("shift_labels")
        given = labels if shifted is None else shifted
        if self._loss is None and isinstance(given, Tensor) and given.shape == self._shape(stack):
            loss_BS = given != -100
            if shifted is None:  # the next label and, as not all models shift them, its own
                loss_BS &= nn.functional.pad(loss_BS[:, 1:], (0, 1))
            self._loss = loss_BS.reshape(-1)
        return self._loss

    def _shape(self, stack: str) -> tuple[int, int] | None:
        names: tuple[str, ...] = ("decoder_input_ids", "labels", "decoder_inputs_embeds")
        if stack != "dec":
            names = ("input_ids", "inputs_embeds", "input", "tokens", "idx", "x", "ids_BS")
        for name in names:
            value = self._given.get(name)
            if isinstance(value, Tensor) and value.dim() >= 1:
                return (1, value.shape[0]) if value.dim() == 1 else tuple(value.shape[:2])  # type: ignore[return-value]
        return None

    def _mask(self) -> Tensor | None:
        mask = self._given.get("attention_mask")
        shape = self._shape("")
        real = _from_mask(mask, shape)
        return self._packed(shape) if real is None else real

    def _decoder_mask(self) -> Tensor | None:
        mask = self._given.get("decoder_attention_mask")
        if mask is not None:
            return _from_mask(mask, self._shape("dec"))
        labels = self._given.get("labels")
        if self._given.get("decoder_input_ids") is None and isinstance(labels, Tensor):
            # The shifted labels: every token that has one, after the start token.
            return nn.functional.pad(labels[:, :-1] != -100, (1, 0), value=True)
        return None

    def _packed(self, shape: tuple[int, int] | None) -> Tensor | None:
        """Without a mask: tokens after the last sequence are padding."""
        if shape is None:
            return None
        for name in ("cu_seq_lens_q", "cu_seqlens", "cu_seqlens_q", "cu_seq_lens"):
            ends = self._given.get(name)
            if isinstance(ends, Tensor) and ends.numel():
                places = torch.arange(shape[0] * shape[1], device=ends.device)
                return (places < ends.reshape(-1)[-1]).view(shape)
        positions = self._given.get("position_ids")
        if isinstance(positions, Tensor) and positions.shape == shape:
            # Filled up with position 0; a single 0 is a sequence of one token.
            trailing = (positions == 0).flip(-1).int().cumprod(-1).flip(-1).bool()
            first = torch.arange(shape[1], device=positions.device) == 0
            return ~trailing | first | (trailing.sum(-1, keepdim=True) == 1)
        return None


def _from_mask(mask: Any, shape: tuple[int, int] | None) -> Tensor | None:
    """Real tokens ``[B, S]``, of a mask in any form that transformers takes."""
    if isinstance(mask, Mapping):  # one per kind of attention; all agree on the padding
        mask = next((m for m in mask.values() if isinstance(m, Tensor)), None)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 4:  # a real token sees itself: allowed is True, or an added zero
        diagonal = mask[:, 0, :, -mask.shape[2] :].diagonal(dim1=-2, dim2=-1)
        real = diagonal if mask.dtype == torch.bool else diagonal >= 0
    else:
        real = mask != 0  # packed batches may number their sequences 1, 2, 3 …
    return real if shape is None else real[:, -shape[1] :]  # earlier tokens are in a cache
