"""Learning curves from run folders."""
def draw_curves(runs, out):
    """stub"""
