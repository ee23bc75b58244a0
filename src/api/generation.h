// What chat and plain completions share, from JSON; and what of a request is refused because it would change the answer
// and Lathe cannot do it. Private to src/api.
#pragma once

#include "api/fields.h"
#include "api/requests.h"

namespace lathe::api {

void read_generation(Fields& fields, GenerationRequest& out);

// To be called last. Complains of every field that no reader asked for, unless it has no influence on the answer, such
// as `user`, or has the one value that Lathe can do, such as `"best_of": 1`.
void refuse_other_fields(Fields& fields);

}  // namespace lathe::api
