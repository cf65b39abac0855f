"""llama.cpp as a back end of drafts."""
