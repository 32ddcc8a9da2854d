"""Pruning: weights that are zero, layers that are gone, narrower feed-forward parts, fewer heads. Model in, model out.

What is left still loads everywhere: zeros are stored as zeros, shapes as the configuration says. Whole layers, heads
and neurons leave a model that has to learn again (``tokenmill train distill``).
"""
