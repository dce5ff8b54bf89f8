"""An 8B continued at a context of 131,072: no published run, but the shape of one, to begin a long-context run from.

The shape is Llama 3.1's (https://arxiv.org/abs/2407.21783, table 3, and the model's config.json: 8,030,261,248
parameters, theta 500,000, frequencies stretched 8 times from 8,192); so are its weights, once imported. The paper
lengthens the context over about 800 billion tokens in six stages and attends within documents; the recipe here is ours
and untested: one stage of 9,999,220,736 tokens, 4.2 million a step, a learning rate of 1e-5 to 1e-6.

Cost: 9,999,220,736 tokens, 1.0e21 FLOPs (`jaxllm show`). Sixteen devices hold a sequence: two of the eight ways to
split heads, eight parts of 16,384 positions, around which keys and values go as a ring; the rest repeat that over
sequences and shard the parameters.

The store stores/long holds two sources in Llama 3's tokenizer (128,256 ids), '<|end_of_text|>' closing every document:
`long`, documents of 16,384 tokens and more, and `short`, the rest of the original mixture, without which short contexts
suffer (https://arxiv.org/abs/2402.10171). base/ is the run folder that `jaxllm import-hf` makes of the weights.

    jaxllm train configs/long_context.py:llama_8b_128k start.folder=base data.store.path=/data/stores/long
    jaxllm train configs/long_context.py:small
"""
