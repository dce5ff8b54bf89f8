/* MKL takes its AVX-512 kernels on processors of one vendor alone; preloaded, this tells it that this is one of them.
   Without it PyTorch on AMD multiplies at less than half the speed, and a comparison says nothing about PyTorch. */
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
