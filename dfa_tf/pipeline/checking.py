"""The check before a run: what does not fit is found before hours of training."""

from dfa_tf.distillation.preparing import build_methods
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.pipeline.building import build_network
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import SearchStage, student_stages
from dfa_tf.pipeline.stages.distil import load_aggregation
from dfa_tf.process.status import doing
from dfa_tf.training import strategies


@doing("checking data, networks and methods")
def check(run: Run) -> None:
    """Builds the splits, both networks and the methods once.

    Raises:
        UserError: if they do not fit one another.
    """
    config, splits = run.config, run.checked_splits()
    run.teacher_digests()
    file = run.inputs.teacher_file
    teacher = build_network(config.teacher, config, splits) if file is None else run.inputs.load_teacher(file)
    student = run.build_student()
    for network in (teacher, student):
        strategies.check_fits(network, splits)
    student, teacher = keep_paired_groups(student, teacher)
    aggregation = None
    if SearchStage in student_stages(config):
        for half in (splits.train, splits.search):
            half.steps(config.data.batch_size)
    else:
        aggregation = load_aggregation(run, teacher)
    build_methods(config, student, teacher, aggregation)
