"""Model registry: `create_model("small_cnn", num_outputs=3, image_size=75)`.

One file a family; importing this package needs torch alone, a builder imports the library it wraps.
"""

from lenslib.models import (  # noqa: F401  (importing a family registers its models)
    a_vit,
    autoencoders,
    backbones,
    cnn,
    cswin,
    equivariant,
    mobile_former,
    moments,
    rvt,
    transformers,
)
from lenslib.models.registry import (
    ModelInfo,
    create_model,
    legal_size,
    list_models,
    load_weights,
    model_info,
    register,
)

__all__ = ["ModelInfo", "create_model", "legal_size", "list_models", "load_weights", "model_info", "register"]
