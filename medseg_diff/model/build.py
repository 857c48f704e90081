"""From a complete configuration to an untrained model: each axis chosen in one place."""

from __future__ import annotations

from torch import nn

from medseg_diff.codecs import Codec, ImageCodec, OneHotCodec
from medseg_diff.config import (
    AdversarialConfig,
    Config,
    LatentConfig,
    ModelConfig,
    ObjectiveConfig,
    TaskConfig,
)
from medseg_diff.diffusion.discrete import Categorical
from medseg_diff.diffusion.paths import (
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
)
from medseg_diff.diffusion.time_laws import TimeLaw, time_law
from medseg_diff.errors import UsageError
from medseg_diff.model.adversarial import DOMAINS, OTHER, AdversarialModel, Domain, Networks
from medseg_diff.model.base import SegmentationModel
from medseg_diff.model.baseline import RegressionModel, UNetModel
from medseg_diff.model.cascade import NoisedConditionModel
from medseg_diff.model.diffusion import DiffusionModel
from medseg_diff.model.discrete import DiscreteModel
from medseg_diff.model.dropout import DropoutUNetModel
from medseg_diff.model.features import FeatureModel
from medseg_diff.model.inpainting import InpaintingModel
from medseg_diff.model.joint import JointModel
from medseg_diff.model.latent import LatentModel
from medseg_diff.model.latent_image import LatentImageModel
from medseg_diff.model.prior import LatentPriorModel, PriorModel
from medseg_diff.model.probabilistic import ProbabilisticUNetModel
from medseg_diff.networks.adversarial import Discriminator, Generator, translator
from medseg_diff.networks.autoencoder import ImageAutoencoder, MaskAutoencoder
from medseg_diff.networks.cascade import CoarseSegmenter, LevelledUNet
from medseg_diff.networks.conditioners import AnchoredPyramid, Pyramid
from medseg_diff.networks.controlnet import ControlledUNet, FirstPlanes
from medseg_diff.networks.depths import DepthsAutoencoder
from medseg_diff.networks.dropout import ChannelDropout
from medseg_diff.networks.entries import CrossAttention, zero_convolution
from medseg_diff.networks.medsegdiff import (
    MedSegDiffV1Conditioner,
    MedSegDiffV1Denoiser,
    MedSegDiffV2Denoiser,
)
from medseg_diff.networks.probabilistic import GaussianEncoder, LatentHead
from medseg_diff.networks.transformer import DiffusionTransformer
from medseg_diff.networks.unet import Entry, UNet, summed


def build_model(config: Config) -> SegmentationModel:
    """Untrained model of a complete configuration (``task`` and ``plan`` filled in)."""
    if config.task is None or config.plan.spatial_dims is None:
        raise ValueError("the configuration is not complete: task and plan come from the data")
    dims, planes, model = config.plan.spatial_dims, config.input_planes, config.model
    if model.prior is not None:
        return build_prior(dims, config)
    if model.control_planes >= planes:
        raise UsageError(
            "no plane of the image is left to the base",
            field="model.control_planes",
            found=model.control_planes,
            expected=f"fewer than {planes}",
        )
    codec = build_codec(config.task)
    if isinstance(codec, ImageCodec) and model.adversarial is not None:
        return build_two_domains(dims, planes, codec, model.adversarial, config)
    if isinstance(codec, OneHotCodec) and (model.kind == "discrete" or model.joint):
        return build_drawn_otherwise(dims, planes, codec, config)
    if model.kind != "diffusion":
        return build_baseline(dims, planes, codec, model, config.objective)
    if model.latent is not None and isinstance(codec, ImageCodec):
        return build_latent_of_images(dims, planes, codec, config)
    state = codec.channels if model.latent is None else model.latent.state_channels
    parts = (
        build_denoiser(dims, planes, state, model),
        build_conditioner(dims, planes, codec.channels, model),
        build_path(model),
        codec,
        build_law(config.objective),
        model,
        config.objective,
    )
    if model.noises_condition:
        coarse = build_coarse(dims, planes, codec, model)
        source = config.task.source_slice(model.source)
        return NoisedConditionModel(coarse, planes, *parts, source=source)
    if config.restoration is not None and config.restoration.kind == "inpainting":
        filler = InpaintingModel(*parts, source=config.task.source_slice(model.source))
        filler.hole_plane = config.task.image_planes
        return filler
    if model.latent is None:
        return DiffusionModel(*parts, source=config.task.source_slice(model.source))
    latent = model.latent
    if not isinstance(codec, OneHotCodec):
        raise ValueError("a latent model makes masks")
    autoencoder = build_autoencoder(dims, planes, codec.channels, latent)
    if latent.of == "mask":
        return LatentModel(autoencoder, *parts[:3], codec, *parts[4:])
    made = FeatureModel(autoencoder, *parts[:3], codec, *parts[4:])
    made.planes = config.task.image_planes
    return made


def build_autoencoder(
    dims: int, planes: int, classes: int, latent: LatentConfig
) -> MaskAutoencoder:
    """Network whose latent is diffused: of masks, or from an image to its mask."""
    kinds = (dims, classes, latent.channels, latent.features)
    if latent.depths > 1:
        return DepthsAutoencoder(*kinds, latent.depths, planes)
    seen = planes if latent.of == "features" else None
    return MaskAutoencoder(*kinds, latent.regulariser, latent.codes, seen)


def build_latent_of_images(
    dims: int, planes: int, codec: ImageCodec, config: Config
) -> LatentImageModel:
    """A translator in the latent of an autoencoder that all its images share."""
    model, latent, task = config.model, config.model.latent, config.known_task
    if latent is None:
        raise ValueError("a latent model needs model.latent")
    kinds = (codec.planes, latent.channels, latent.features, latent.regulariser, latent.codes)
    shown = planes // codec.planes * latent.channels
    # What it sees of the image are the channels' latents.
    seeing = model.model_copy(update={"concat_image": True})
    return LatentImageModel(
        ImageAutoencoder(dims, *kinds),
        build_denoiser(dims, shown, latent.channels, seeing),
        build_path(model),
        codec,
        build_law(config.objective),
        model,
        config.objective,
        task.source_slice(model.source).start // codec.planes,
    )


def build_drawn_otherwise(
    dims: int, planes: int, codec: OneHotCodec, config: Config
) -> SegmentationModel:
    """A model whose state is no encoded mask: classes themselves, or image and mask together."""
    model, law = config.model, build_law(config.objective)
    if model.joint:
        denoiser = build_denoiser(dims, planes, planes + codec.channels, model)
        path = build_path(model)
        return JointModel(planes, denoiser, path, codec, law, model, config.objective)
    return DiscreteModel(
        build_denoiser(dims, planes, codec.channels, model),
        build_conditioner(dims, planes, codec.channels, model),
        Categorical(VariancePreserving(model.schedule), model.discrete_steps),
        codec,
        law,
        model,
        config.objective,
    )


def build_two_domains(
    dims: int, planes: int, target: ImageCodec, adversarial: AdversarialConfig, config: Config
) -> SegmentationModel:
    """Generators, one-pass translators and discriminators of both domains of unpaired images."""
    model, judges = config.model, adversarial.discriminator_features
    codecs: dict[Domain, ImageCodec] = {"a": ImageCodec(planes), "b": target}
    widths = {domain: codecs[domain].channels for domain in DOMAINS}
    networks = {
        d: Networks(
            translator(dims, widths[OTHER[d]], widths[d], model.features),
            Generator(
                dims,
                widths[d],
                widths[OTHER[d]],
                adversarial.latent_planes,
                model.features,
                model.time_channels,
            ),
            Discriminator(dims, 2 * widths[d], judges, model.time_channels),
            Discriminator(dims, widths[d], judges),
        )
        for d in DOMAINS
    }
    path = build_path(model)
    return AdversarialModel(codecs, networks, path, adversarial, config.objective)


def build_prior(dims: int, config: Config) -> PriorModel | LatentPriorModel:
    """A model of the scans themselves."""
    task, model = config.known_task, config.model
    codec = ImageCodec(task.image_planes)
    condition = mask_codec(task) if model.prior == "mask" else None
    # The label map is one plane of the input; the network sees one for each class.
    more = 0 if condition is None else condition.channels - 1
    planes, latent = config.input_planes + more, model.latent
    state = codec.channels if latent is None else latent.channels
    denoiser = build_denoiser(dims, planes, state, model)
    parts = build_path(model), codec, build_law(config.objective), model, config.objective
    if latent is None:
        return PriorModel(condition, denoiser, *parts)
    autoencoder = MaskAutoencoder(
        dims, codec.channels, latent.channels, latent.features, latent.regulariser, latent.codes
    )
    conditioner = build_conditioner(dims, planes, codec.channels, model)
    return LatentPriorModel(condition, autoencoder, denoiser, conditioner, *parts)


def build_baseline(
    dims: int, planes: int, codec: Codec, model: ModelConfig, objective: ObjectiveConfig
) -> SegmentationModel:
    """A model that diffuses nothing: U-Net, MC dropout, Probabilistic U-Net, regression."""
    if not isinstance(codec, OneHotCodec):
        if not isinstance(codec, ImageCodec) or model.kind != "unet":
            raise ValueError(f"model.kind '{model.kind}' makes masks")
        network = UNet(dims, planes, codec.channels, model.features)
        return RegressionModel(network, codec, objective)
    if model.kind == "probabilistic_unet":
        widths, size = model.conditioner_features or model.features, model.latent_size
        return ProbabilisticUNetModel(
            UNet(dims, planes, None, model.features),
            GaussianEncoder(dims, planes, widths, size),
            GaussianEncoder(dims, planes + codec.channels, widths, size),
            LatentHead(dims, model.features[0], size, codec.channels),
            codec,
            objective,
            size,
        )
    network = UNet(dims, planes, codec.channels, model.features, norm=model.norm)
    if model.dropout == 0:
        return UNetModel(network, codec, objective)
    dropout = ChannelDropout(model.features, model.dropout)
    return DropoutUNetModel(network, dropout, codec, objective)


def build_codec(task: TaskConfig) -> Codec:
    """Codec of a task: a target image, classes with a background channel, or regions."""
    if task.target is not None:
        return ImageCodec(task.target_planes)
    return mask_codec(task)


def mask_codec(task: TaskConfig) -> OneHotCodec:
    """Codec of a task's label maps: classes with a background channel, or regions."""
    if task.regions is not None:
        return OneHotCodec(tuple(task.regions.values()), False, task.ignore_label)
    values = tuple((value,) for value in sorted(task.labels.values()))
    return OneHotCodec(values, True, task.ignore_label)


def build_path(model: ModelConfig) -> Path:
    """The noising process."""
    if model.path == "variance_exploding":
        return VarianceExploding(model.sigma_min, model.sigma_max)
    if model.path == "bridge":
        return BrownianBridge(model.bridge_scale)
    if model.path == "linear":
        return Linear(source_as_noise=model.line_from == "source")
    if model.betas is not None:
        return BetaTable(model.betas, model.input_scale)
    return VariancePreserving(model.schedule, model.input_scale, model.zero_terminal_snr)


def build_law(objective: ObjectiveConfig) -> TimeLaw:
    """How training times are drawn."""
    return time_law(
        objective.time_law,
        objective.time_law_shape,
        objective.time_law_bins,
        objective.time_law_history,
    )


def build_conditioner(dims: int, planes: int, classes: int, model: ModelConfig) -> nn.Module | None:
    """Image -> context."""
    if model.control_planes > 0 and model.conditioner != "none":
        plain = model.model_copy(update={"control_planes": 0})
        own = planes - model.control_planes
        inner = build_conditioner(dims, own, classes, plain)
        return None if inner is None else FirstPlanes(inner, own)
    widths = model.conditioner_features or model.features
    if model.conditioner == "pyramid":
        if model.latent is not None and model.latent.condition == "features":
            return Pyramid(dims, model.latent.state_channels, widths)
        # Above a latent's grid the image has finer levels of its own, which the context skips.
        finer = () if model.latent is None else model.latent.features[: -model.latent.depths]
        return Pyramid(dims, planes, (*finer, *widths), skip=len(finer))
    if model.conditioner == "anchored":
        return AnchoredPyramid(dims, planes, classes, widths)
    if model.conditioner == "medsegdiff_v1":
        return MedSegDiffV1Conditioner(dims, planes, widths, blocks_of(model))
    return None


def build_coarse(
    dims: int, planes: int, codec: Codec, model: ModelConfig
) -> CoarseSegmenter | None:
    """A cascade's first stage, where there is one."""
    if model.coarse is None:
        return None
    return CoarseSegmenter(dims, planes, codec.channels, model.coarse.features, model.coarse.factor)


def build_denoiser(dims: int, planes: int, state: int, model: ModelConfig) -> nn.Module:
    """Network of the state, at the widths and with the inputs that the configuration names."""
    inputs = state * (2 if model.self_conditioning else 1)
    inputs += planes if model.concat_image else 0
    inputs += state if model.discrete_prior == "segmenter" or model.coarse is not None else 0
    outputs = state * (2 if model.learned_variance else 1)
    widths = model.conditioner_features or model.features
    if model.denoiser == "medsegdiff_v1":
        return MedSegDiffV1Denoiser(
            dims,
            inputs,
            outputs,
            model.features,
            blocks=blocks_of(model),
            time_channels=model.time_channels,
        )
    if model.denoiser == "medsegdiff_v2":
        return MedSegDiffV2Denoiser(
            dims,
            inputs,
            outputs,
            model.features,
            context_channels=widths,
            time_channels=model.time_channels,
            blocks=model.transformer_blocks,
        )
    if model.denoiser == "dit":
        return DiffusionTransformer(
            dims,
            inputs,
            outputs,
            width=model.features[0],
            depth=len(model.features),
            heads=model.heads,
            token_size=model.token_size,
            time_channels=model.time_channels,
            context_channels=None if model.conditioner == "none" else widths[-1],
        )
    if model.control_planes > 0:
        return ControlledUNet(
            dims,
            inputs,
            outputs,
            model.features,
            condition_channels=model.control_planes,
            time_channels=model.time_channels,
            context_channels=None if model.conditioner == "none" else widths,
        )
    given = None if model.conditioner == "none" else widths
    kinds = (dims, inputs, outputs, model.features)
    if model.noises_condition:
        return LevelledUNet(*kinds, time_channels=model.time_channels, context_channels=given)
    return UNet(
        *kinds,
        time_channels=model.time_channels,
        context_channels=given,
        entry=build_entry(model),
    )


def build_entry(model: ModelConfig) -> Entry:
    """How a context's map enters a level of a U-Net."""
    if model.mixer == "zero_convolution":
        return zero_convolution
    if model.mixer == "cross_attention":
        return lambda dims, given, width: CrossAttention(width, given, model.heads)
    return summed


def blocks_of(model: ModelConfig) -> tuple[int, ...]:
    """Residual blocks of each level: one, where the configuration names none."""
    return model.blocks or (1,) * len(model.features)
