import jax, jax.numpy as jnp, numpy as np, dataclasses, json
from configs.quickstart import quickstart
from jaxllm.parallel.config import Mesh
def go(dp,fsdp,tp,sp=False,ema=False):
    from jaxllm.assembly import assemble
    from jaxllm.optim.config import Ema
    run=quickstart()
    run=dataclasses.replace(run, mesh=Mesh(dp=dp,fsdp=fsdp,tp=tp,sequence_parallel=sp), optimizer=dataclasses.replace(run.optimizer, ema=Ema() if ema else None))
    a=assemble(run); s=a.initial_state()
    d0=a.digest(s.items())
    rng=np.random.default_rng(0)
    out=[]
    B,S=16,256
    for k in range(3):
        t=rng.integers(0,4096,(B,S+1)).astype(np.int32)
        batch={"inputs":t[:,:-1],"labels":t[:,1:],"segments":np.zeros((B,S),np.int32),"positions":np.tile(np.arange(S,dtype=np.int32),(B,1)),"loss_mask":np.ones((B,S),bool)}
        s,m=a.step(s,a.place(batch),np.float32(1e-3),with_norms=(k==2))
        jax.block_until_ready(s)
        out.append(float(m.loss)); gn=float(m.grad_norm)
    from jaxllm.core import mixing
    from jaxllm.parallel.digest import leaf_paths
    d=a.digest(s.items())
    host=dict(zip(leaf_paths(s.items()),[np.asarray(x) for x in jax.tree.leaves(s.items())]))
    return [out,gn,d==mixing.tree_digest(host),a.combined_digest(s.items(),d0),len(d), sorted(d)[:3], {k:v.shape for k,v in m.norms["update"].items()}.__repr__()[:150]]
if __name__=="__main__":
    from tests.simulated import run_simulated
