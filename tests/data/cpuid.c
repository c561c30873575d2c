#include <linux/kvm_host.h>

bool kvm_cpuid(struct kvm_vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx, bool exact_only);

/* As KVM's own (without the faulting of CPUID), but for the first letters of the CPU's name. */
int kvm_emulate_cpuid(struct kvm_vcpu *vcpu)
{
	unsigned long *regs = vcpu->arch.regs;
	u32 leaf = regs[VCPU_REGS_RAX];
	u32 eax = leaf, ebx, ecx = regs[VCPU_REGS_RCX], edx;

	kvm_cpuid(vcpu, &eax, &ebx, &ecx, &edx, false);
	regs[VCPU_REGS_RAX] = leaf == 0x80000002 ? 0x54494b56 : eax; /* "VKIT" */
	regs[VCPU_REGS_RBX] = ebx;
	regs[VCPU_REGS_RCX] = ecx;
	regs[VCPU_REGS_RDX] = edx;
	return kvm_skip_emulated_instruction(vcpu);
}
