"""What serving and evaluation both call: synthesise, inpaint, register, plan, guide."""
