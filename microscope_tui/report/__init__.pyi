# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .check import (
    NO_VERDICT as NO_VERDICT,
    Alerts as Alerts,
    CheckRequest as CheckRequest,
    Judgement as Judgement,
    News as News,
    counts_text as counts_text,
    finding_json as finding_json,
    findings_with_advice as findings_with_advice,
    judge as judge,
    news_json as news_json,
    news_text as news_text,
    no_run as no_run,
    verdict_json as verdict_json,
    verdict_text as verdict_text,
    worst_code as worst_code,
)
from .coverage import (
    LAST_STEPS as LAST_STEPS,
    coverage_json as coverage_json,
    coverage_of as coverage_of,
    coverage_text as coverage_text,
    further as further,
    score_interval as score_interval,
)
from .doctor import (
    ROOMY_ROWS as ROOMY_ROWS,
    Terminal as Terminal,
    colours_of as colours_of,
    doctor_text as doctor_text,
    in_multiplexer as in_multiplexer,
    is_remote as is_remote,
    layout_of as layout_of,
    recommended as recommended,
)
from .explain import as_list as as_list, explained as explained, rule_text as rule_text
from .export import (
    EXPERT_COLUMNS as EXPERT_COLUMNS,
    ROUTER_COLUMNS as ROUTER_COLUMNS,
    VIEW_COLUMNS as VIEW_COLUMNS,
    Row as Row,
    effective_experts as effective_experts,
    rows_of as rows_of,
    runs_json as runs_json,
    view_csv as view_csv,
    view_json as view_json,
    write_csv as write_csv,
)
from .format_check import (
    check_format as check_format,
    format_json as format_json,
    format_text as format_text,
)
from .placement import placement_json as placement_json, placement_text as placement_text
from .probes import (
    compared_probes as compared_probes,
    mismatch_json as mismatch_json,
    slices_json as slices_json,
    tokens_json as tokens_json,
)
from .prometheus import gauges_text as gauges_text
