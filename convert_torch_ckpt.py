"""Convert the PyTorch weights of a VDT to vdt_jax, or back; needs no torch and executes nothing from the file.

    python convert_torch_ckpt.py --input=model.pt --output=checkpoints/sky
    python convert_torch_ckpt.py --to_torch --input=checkpoints/sky --output=sky.safetensors

Beside the parameters, the output has conversion.json: each tensor's shape and mean, and the SHA-256 of the source.
An autoencoder needs no conversion (sample.py --vae); --to_torch writes one of the old files under the present names.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

from vdt_jax import cli
from vdt_jax.checkpoints.conversion import ConvertOptions, convert

cli.define_flags(ConvertOptions)


def main(_) -> None:
    options = cli.options_of_flags(ConvertOptions)
    cli.quiet_start()
    report = convert(options)
    if options.to_torch:
        print(f"{options.output}: {report['tensors']} tensors, SHA-256 {report['sha256']}")
        return
    for name, reason in report["ignored"].items():
        print(f"ignored: {name} ({reason})")
    trained = report["trained_parameters"] / 1e6
    print(f"{options.output}: {len(report['tensors'])} tensors, {trained:.2f} M trained parameters, {report['model']}")
    print(f"SHA-256 of the source: {report['source']['sha256']}")
    if options.verify:
        print(f"output on the fixed input: {report['verify']}")


if __name__ == "__main__":
    cli.run(main)
