"""Whether a hospital's policy lets a study in. A study can never widen the policy."""

from sites.policy import Policy, Refused
from sites.study import Study


def admit(policy: Policy, study: Study) -> None:
    """Raise `Refused` with the reason unless the hospital's own limits allow the study."""
    teacher = study.distillation.teacher if study.distillation else None
    for network in (study.network, teacher):
        if network and network.name not in policy.networks:
            raise Refused(
                f"network {network.name} is not among those that the policy allows: "
                f"{', '.join(policy.networks)}"
            )
    if study.privacy.mode == "none":
        if policy.plain_studies == "refuse":
            raise Refused(
                "the study trains without differential privacy and the policy has plain_studies: refuse"
            )
        return
    if study.training.lot_size is not None and policy.sampled_steps == "refuse":
        raise Refused(
            "the study samples patients for its steps and the policy has sampled_steps: refuse"
        )
    for key in ("epsilon", "delta"):
        asked, allowed = getattr(study.privacy, key), getattr(policy.budget, key)
        if asked > allowed:
            raise Refused(f"the study asks for {key} {asked:g}, the policy allows {allowed:g}")
    if study.privacy.delta >= 1 / policy.declared_training:
        raise Refused("the study's delta is not below one over the declared training patients")
