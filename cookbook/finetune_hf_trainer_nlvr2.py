"""Fine-tunes on NLVR2 with the published recipe's flags; the work is in `front`.

    torchrun --nproc_per_node=8 finetune_hf_trainer_nlvr2.py

`--data_dir`: a folder with the Parquet files of HuggingFaceM4/the_cauldron, part nlvr2.
"""

from front import Front, main

FRONT = Front(
    task="nlvr2",
    flash_means_bf16=True,
)

if __name__ == "__main__":
    main(FRONT)
