"""What the parent of all warm kernels imports; nothing here may touch a GPU or compute.

This package's own modules are left out: they bind the root folder when they are imported, and a kernel may have another.
"""

import importlib
import warnings

# Heavy imports of the notebooks, and what a kernel itself needs. One that is missing costs time, not correctness.
MODULES = (
    "ipykernel.kernelapp", "ipykernel.ipkernel", "IPython.core.interactiveshell", "matplotlib.pyplot", "matplotlib_inline",
    "numpy", "scipy.stats", "sklearn.linear_model", "torch", "torch.nn.functional", "safetensors.torch", "jsonschema",
    "ruamel.yaml", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2", "threadpoolctl",
)

warnings.filterwarnings("ignore", message="IProgress not found")  # stored notebooks hold no progress bars
for _name in MODULES:
    try:
        importlib.import_module(_name)
    except ImportError:
        continue
