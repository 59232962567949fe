# What other packages import from here. Loaded when used (see lazy_loader).
from .check import (
    NO_VERDICT as NO_VERDICT,
    Alerts as Alerts,
    CheckRequest as CheckRequest,
    News as News,
    counts_text as counts_text,
    judge as judge,
    news_json as news_json,
    news_text as news_text,
    no_run as no_run,
    verdict_json as verdict_json,
    verdict_text as verdict_text,
    worst_code as worst_code,
)
from .coverage import (
    coverage_json as coverage_json,
    coverage_of as coverage_of,
    coverage_text as coverage_text,
)
from .doctor import (
    Terminal as Terminal,
    colours_of as colours_of,
    doctor_text as doctor_text,
    in_multiplexer as in_multiplexer,
    is_remote as is_remote,
)
from .explain import as_list as as_list, explained as explained, rule_text as rule_text
from .export import (
    EXPERT_COLUMNS as EXPERT_COLUMNS,
    ROUTER_COLUMNS as ROUTER_COLUMNS,
    Row as Row,
    effective_experts as effective_experts,
    rows_of as rows_of,
    view_csv as view_csv,
    view_json as view_json,
    write_csv as write_csv,
)
from .placement import placement_json as placement_json, placement_text as placement_text
from .probes import mismatch_json as mismatch_json, slices_json as slices_json
from .prometheus import gauges_text as gauges_text
