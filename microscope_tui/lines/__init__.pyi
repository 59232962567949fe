# What other packages import from here. Loaded when used (see lazy_loader).
from .alerts import Entry as Entry, evidence as evidence
from .bars import (
    QUADRANTS as QUADRANTS,
    bars_width as bars_width,
    bias_bars as bias_bars,
    load_bars as load_bars,
)
from .charts import (
    GUTTER as GUTTER,
    SMOOTHINGS as SMOOTHINGS,
    Chart as Chart,
    Curve as Curve,
    Placed as Placed,
    Scale as Scale,
    arranged as arranged,
    beside as beside,
    course_chart as course_chart,
    layer_charts as layer_charts,
    loss_answer as loss_answer,
    names_width as names_width,
    plot_area as plot_area,
    smoothed as smoothed,
)
from .columns import Table as Table
from .cost import layer_cost as layer_cost, model_cost as model_cost
from .expert_card import LoadSeries as LoadSeries
from .frame import MIN_COLUMNS as MIN_COLUMNS, MIN_ROWS as MIN_ROWS
from .glossary import glossary as glossary
from .glyphs import (
    CALM_FROM as CALM_FROM,
    CALM_TO as CALM_TO,
    HOT_LEVEL as HOT_LEVEL,
    Glyphs as Glyphs,
    glyphs_for as glyphs_for,
    is_calm as is_calm,
    shade_level as shade_level,
    spelled as spelled,
)
from .heat import (
    Heat as Heat,
    Look as Look,
    Measure as Measure,
    Order as Order,
    Palette as Palette,
    after as after,
    has_legend as has_legend,
    highest_possible as highest_possible,
    legend as legend,
    order_of as order_of,
)
from .mismatch import mismatch_text as mismatch_text
from .numbers import (
    COURSE as COURSE,
    OF_LAYER as OF_LAYER,
    OVERVIEW as OVERVIEW,
    label_of as label_of,
    number_chart as number_chart,
    number_line as number_line,
    numbers_of as numbers_of,
    quoted as quoted,
)
from .pattern import matches as matches
from .placement import (
    ageing_chart as ageing_chart,
    placement_lines as placement_lines,
    repair_first as repair_first,
)
from .run_map import (
    MapLayout as MapLayout,
    cell_columns as cell_columns,
    fit_map as fit_map,
    levels_of as levels_of,
    map_cursor as map_cursor,
    map_label as map_label,
    map_legend as map_legend,
    map_line as map_line,
    map_title as map_title,
)
from .slices import (
    ExpertRow as ExpertRow,
    NoTables as NoTables,
    Ordering as Ordering,
    SliceTable as SliceTable,
    explained as explained,
    found_ahead as found_ahead,
    slice_table as slice_table,
)
from .snapshot import snapshot_text as snapshot_text
from .spans import (
    ROLE_OF_SEVERITY as ROLE_OF_SEVERITY,
    WORD_OF_SEVERITY as WORD_OF_SEVERITY,
    Line as Line,
    Span as Span,
    dim as dim,
    line_width as line_width,
    pad as pad,
    plain as plain,
    shortened as shortened,
    spread as spread,
    width_of as width_of,
    with_notes as with_notes,
    wrap as wrap,
)
from .steady import SteadyLevels as SteadyLevels
from .table import (
    TableLayout as TableLayout,
    expert_line as expert_line,
    first_visible as first_visible,
    fit as fit,
    matching as matching,
)
from .time_line import (
    EVALUATION as EVALUATION,
    RESTART as RESTART,
    Axis as Axis,
    TimeScale as TimeScale,
    time_scale as time_scale,
)
from .together import (
    MOST_RUNS as MOST_RUNS,
    Across as Across,
    numbers_together as numbers_together,
    together_chart as together_chart,
    together_lines as together_lines,
)
from .token_flow import Flow as Flow, Place as Place, shown_token as shown_token
from .tokens import Highlight as Highlight
from .words import (
    aligned as aligned,
    bytes_of as bytes_of,
    listed as listed,
    short_number as short_number,
)
