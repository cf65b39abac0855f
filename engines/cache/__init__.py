"""The KV cache: slots, pools of slots, and pools in a GPU's memory."""
